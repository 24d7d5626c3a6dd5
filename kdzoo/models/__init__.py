"""Networks: a timm model with what distillation needs of it."""
