"""Shapes of the contract that several tests hold answers to."""

META = {
    "name",
    "description",
    "model_family",
    "model_type",
    "model_flavour",
    "lora_type",
    "created_at",
    "modified_at",
    "tags",
    "is_template",
    "parent_template",
}
