from __future__ import annotations

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.config.publishing import ADDRESS_FIELDS, PLACE_FIELDS, SECRET_FIELDS


class PublishingOptions(OptionGroup):
    """Where checkpoints and results are uploaded to, beside training."""

    push_to_hub: bool = option(
        False, "Upload the result of a finished run to the Hugging Face hub; needs a login (hf auth login, HF_TOKEN)."
    )
    push_checkpoints_to_hub: bool = option(
        False, "Upload every checkpoint to the hub as well, each to a subfolder checkpoint-N. Needs push_to_hub."
    )
    push_to_hub_background: bool = option(False, "Accepted for older configurations: uploads are always made beside training.")
    hub_model_id: str | None = option(
        None,
        "Repository on the hub: name or owner/name; made where there is none. Empty: tracker_project_name where that was changed, else "
        "the name of output_dir. Its last part also names the folder of a run at other stores.",
    )
    model_card_private: bool = option(True, "Make the hub's repository private when it is made; one that is there stays as it is.")
    model_card_note: str | None = option(None, "Text of your own in the card beside the result.")
    model_card_safe_for_work: bool = option(
        False, "Leave out the card's notice that a published model was not checked for adult content, and the hub's tag for it."
    )
    publishing_config: str = option(
        "",
        "Further stores that every checkpoint and the result are uploaded to (S3 and compatibles, Backblaze B2, Azure, Dropbox): a list or "
        "one object of JSON, in a string or in a file. docs/publishing.md has the fields.",
        json=True,
        secret=SECRET_FIELDS,
        addresses=ADDRESS_FIELDS,
        places=PLACE_FIELDS,
    )
