"""Options of the format that ask how to do something which this trainer does without being asked. Real configurations contain them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from trainer_engine.config.json_fields import WrongValue, folded, parse_bool
from trainer_engine.contract.errors import Problem

SCANS = ("vae", "aspect", "text", "metadata")
LEFT_OUT = "files that cannot be read are left out and named, and nothing is deleted"
UNWANTED = "images that do not fit the limits of their set are left out and counted, and nothing is deleted"
_WORKERS = "images are read ahead by as many threads as max_workers allows"
HINTS: Mapping[str, str] = MappingProxyType(
    {
        "offload_during_startup": "text encoders and autoencoder leave the memory before the network is loaded",
        "offload_during_save": "checkpoints are written from a copy in the memory of the host and need none of the device",
        "ramtorch_disable_sync_hooks": "copies and computation wait for each other on the device, without hooks",
        "ramtorch_vae": "the autoencoder is only in memory while images are encoded or generated",
        "group_offload_vae": "the autoencoder is only in memory while images are encoded or generated",
        "fully_unload_text_encoder": "text encoders leave the memory when the prompts are cached",
        "aspect_bucket_worker_count": "the headers of files are read by as many threads as the machine can use",
        "aspect_bucket_disable_rebuild": "buckets are formed once and not again in every epoch",
        "read_batch_size": _WORKERS,
        "image_processing_batch_size": _WORKERS,
        "metadata_update_interval": "sizes of files are stored as soon as they are measured",
        "skip_file_discovery": "files that have not changed are not opened again",
        "disable_bucket_pruning": "buckets smaller than a batch are always kept, and their images repeated",
        "ideogram_validation": "validation images are made where prompts for them are set, unless validation_disable is true",
        "set_grads_to_none": "gradients are always freed",
        "print_filenames": "files that cannot be used are named in the report of the datasets",
        "print_sampler_statistics": "the report of the datasets says how often each bucket is seen",
        "debug_aspect_buckets": "the report of the datasets lists every bucket",
        "debug_dataset_loader": "the report of the datasets says what was found and what was left out",
        "enable_multiprocessing": "files are read and decoded by threads beside the training",
        "text_embed_full_cache": "embeddings of all prompts are cached before the training",
        "delete_problematic_images": LEFT_OUT,
        "delete_unwanted_images": UNWANTED,
        "ignore_missing_files": "files that are gone are left out and named",
        "override_dataset_config": "entries of caches depend on the settings of their dataset, so other settings cannot take wrong ones",
        "vae_cache_scan_behaviour": "each entry of a cache has a checksum, and a damaged one is computed again",
        "preserve_data_backend_cache": "files that have not changed are not opened again, and new ones are found",
        "keep_vae_loaded": "the autoencoder comes back when a validation needs it",
        "delete_model_after_load": "downloaded weights stay in the cache of the hub, where hf cache can remove them",
        "strict_epoch_limit": "num_train_epochs always ends a run",
        "ignore_final_epochs": "a run of max_train_steps ends after these steps, in whichever epoch",
        "fsdp_limit_all_gathers": "version 2 of FSDP gathers the weights of one block ahead",
        "fsdp_state_dict_type": "checkpoints hold complete weights, which load with and without FSDP",
        "same_network": "machines connect to main_process_ip, in one network or not",
        "local_rank": "the launcher numbers the processes",
        "seed_for_each_device": "each sample has random numbers of its own, whichever process takes it",
        "disable_segmented_timestep_sampling": "timesteps of the samples of a batch are sampled independently",
        "training_scheduler_timestep_spacing": "every timestep of the noise schedule is trained on; "
        "inference_scheduler_timestep_spacing spaces those of validation images",
        "wan_force_2_1_time_embedding": "every flavour of Wan that is here has the time embedding of 2.1",
        "wan_validation_load_other_stage": "every flavour of Wan that is here is one network, and validations use all of it",
    }
)
"""Option -> what happens anyway."""
CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "vae_cache_scan_behaviour": ("recreate", "sync"),
        "fsdp_state_dict_type": ("full_state_dict", "sharded_state_dict"),
        "training_scheduler_timestep_spacing": ("leading", "linspace", "trailing"),
    }
)
"""Option -> its values, if these are words."""


def hint_problem(name: str, value: object, default: object) -> Problem:
    """Returns a note that says why a value needs nothing, or an error if the option cannot have it. ``default`` is the format's."""
    try:
        _check(name, value, default)
    except WrongValue as wrong:
        return Problem.error(name, wrong.code, f"{name} {wrong}.", got=value, hint=wrong.hint)
    message = f"{name} has no effect: {HINTS[name]}."
    return Problem.note(name, "not_needed", message, got=value, hint="it may stay in the configuration")


def _check(name: str, value: object, default: object) -> None:
    """Raises WrongValue."""
    if isinstance(default, bool):
        parse_bool(value)
    elif name in CHOICES:
        if folded(value) not in map(folded, CHOICES[name]):
            raise WrongValue("is not one of the choices", code="not_a_choice", hint=f"use one of {', '.join(CHOICES[name])}")
    elif isinstance(default, int):
        if isinstance(value, bool) or not (str(value).strip().isascii() and str(value).strip().isdigit()):
            raise WrongValue("is not a whole number", code="not_a_number", hint=f"its default is {default}")
    else:
        words = str(value).replace(",", " ").split() if isinstance(value, str) else value
        if not isinstance(words, list) or not all(word in SCANS for word in words):
            raise WrongValue("names something else than scans", code="not_a_choice", hint=f"use some of {', '.join(SCANS)}")
