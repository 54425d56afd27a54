"""The prose of ``docs/datasets.md``, which stands before the fields and before the sizes of caches."""

from __future__ import annotations

from trainer_engine.config.datasets.sizes import TYPICAL_TOKENS

HEAD = """# Datasets

This page is generated from the declared fields by `python -m trainer_engine.config.datasets.docs`; a test checks that it is up to date.

The option `data_backend_config` names a JSON file with a list of datasets, each an object. A run needs at least one dataset of
`dataset_type` `image` or `video`. If the file has no set of `text_embeds`, one is created; exactly one of them is the default.

```json
[
  {"id": "cats", "type": "local", "dataset_type": "image", "instance_data_dir": "/data/cats", "caption_strategy": "textfile",
   "resolution": 1.0, "resolution_type": "area", "crop": true, "crop_style": "center", "crop_aspect": "square", "repeats": 2},
  {"id": "text", "type": "local", "dataset_type": "text_embeds", "default": true, "cache_dir": "/data/cache/text"}
]
```

Every text may contain `{model_family}`, `{output_dir}` and `{id}`. `disabled` (or `disable`) skips an entry. Booleans may be written as
text.

## Where files and captions come from

`type` chooses the source of a set's files, `caption_strategy` where its captions come from; each may have further fields, which are listed
below. A file is known by its name within the set. A set that moves to another folder or source, and keeps its names and its cache folders,
keeps the order of its samples, its checkpoints and its cached latents and embeddings: these depend on the contents of files, never on
where they lie. Each source, caption strategy and kind of media is a file of its own:
[new-dataset-source.md](new-dataset-source.md) shows how to add one.

### Buckets

`type` `aws` reads a bucket of S3, or of a service with its protocol (`aws_endpoint_url`), and needs `pip install '.[aws]'`. Names
are those of the objects below `aws_data_prefix`; an object's ETag and size are its version. Measuring an image takes one or two requests
for 16 KiB, and is remembered; before the first training each object is read twice, for its hash and for its pixels, and later not at all.
Captions of `textfile` lie beside the objects. Caches stay on this machine. Requests are signed with the keys of the entry, or not at all:
the keys of the account are never used. The server shows and stores keys as `***` ([security.md](security.md)); without a
private-network setting it reads only public services and this machine. A request that fails is sent three times in all. An object that is
gone, or replaced, after it was listed is named once and left out.

### Addresses

`type` `csv` reads files at the addresses in a column of `csv_file` (`csv_url_column`), with captions of another column
(`caption_strategy` `csv`, `csv_caption_column`). `validate` downloads nothing: it says how many files a run will fetch, and counts the
samples of those that are here. A run fetches the others first, 16 at a time, each once, into `csv_cache_dir`; a file gets its name when it
is complete and its header can be read. Only `http` and `https` addresses of public machines and of this one are asked, redirects are not
followed, and a file has at most 256 MiB and five minutes. An address that is dead is named once and left out. It is asked again after a
week, or after an hour if the server was busy or did not answer. With `csv_hash_filenames` files are named by a hash of their address, else
by its path: `https://example.com/cats/1.png` is `cats/1.png`, as in a local folder. Nothing is removed from the folder, and a file there is
never replaced: to fetch one again, remove it.

## Datasets of the Hugging Face hub

`type` `huggingface` reads a dataset of the hub, or a folder or a parquet file in its layout, without `datasets`:

```json
[
  {"id": "domokun", "type": "huggingface", "dataset_name": "RareConcepts/Domokun", "metadata_backend": "huggingface",
   "caption_strategy": "instanceprompt", "instance_prompt": "domokun", "resolution": 1024, "resolution_type": "pixel_area", "crop": true},
  {"id": "photos", "type": "huggingface", "dataset_name": "owner/photos", "split": "train", "revision": "v1.0", "image_column": "image",
   "caption_strategy": "huggingface",
   "huggingface": {"caption_column": ["caption.short", "caption.long"],
                   "filter_func": {"quality_thresholds": {"clear": 0.5}, "min_width": 512}}}
]
```

- **Which files**: `configs` in the card (README.md) says it, or the names do: `data/train-00000-of-00002.parquet`, `train/0001.jpg`.
  Parquet files are read, and folders of images, with `metadata.jsonl` or `metadata.csv` (a row for each `file_name`) in them. If a dataset
  has another format, the copy in parquet that the hub keeps (`refs/convert/parquet`) is read. Programs of a repository are never run.
- **Downloads**: a run downloads what is missing when it starts, into the hub's cache, and can be stopped meanwhile; the next run goes on.
  `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` count. `validate` examines what is in the cache. About anything else it asks the
  hub (repository, access, revision, split, columns) for a few seconds, and says that the rows are examined when the run starts.
- **Rows** are read where they lie, in windows of 16 MB, of which 256 MB are kept. Row 17 of the first shard is the file
  `train-00000/000017.jpg`: its image is an object of `bytes` or `path`, bytes, or the path of a file in the dataset. A branch is pinned to
  its commit when a run starts, and a commit is part of a row's address. Latents depend on the content of images alone, so they stay valid.
- **Sizes**: with `metadata_backend` `huggingface` and columns `width` and `height`, images need not be opened. The columns are first
  compared with some images, and are not used if they are wrong. Without them every image is read once; the sizes are remembered.
- **Captions**: `caption_strategy` is `huggingface`, which is the default here, or `instanceprompt`. Each column, and each text of a list
  in a column, is one of several alternative captions. A row without any takes that of `fallback_caption_column`.
- **References**: two sets may read two columns of the same rows: the set of images names the conditioning set in `conditioning_data`, and
  each has its own `image_column`.

## How an image becomes a sample

1. Image files are found by their suffixes in the folder and all its subfolders; hidden files are skipped. `validate` names broken files and
   files without a caption, and they are left out. Only newlines end the lines of a `.txt` file; other Unicode separators are part of a
   caption. `max_num_samples` selects some of the files, always the same ones for the same `id`.
2. Images below `minimum_image_size` are left out. With `area` and `pixel_area` the area counts (for squares also the shorter edge), with
   `pixel` the shorter edge. The size is measured after the EXIF orientation is applied.
3. The aspect ratio (width / height, rounded to `aspect_bucket_rounding` decimals) gives the target size. With `area`, a square of
   `resolution` megapixels is stretched to the aspect ratio; squares of 0.25, 0.5, 1, 2 and 4 megapixels have edges of 512, 768, 1024, 1536
   and 2048 pixels. `pixel_area` is the same, with the edge of that square in pixels. With `pixel`, the shorter edge is `resolution`. Edges
   are multiples of `aspect_bucket_alignment`. Aspect ratios below 0.01 or above 100 are trained at these limits; `validate` names such
   images.
4. The image is scaled until it just covers the target. Only if `crop` is on and the image is larger than `maximum_image_size`, it is scaled
   to `target_downsample_size` instead, or further if it would not cover the target. Smaller images are enlarged; `validate` counts them for
   networks that are given the sizes of files.
5. `crop_style` selects the part that is kept. Even without `crop` some pixels are cut off along one edge, since edges are whole multiples.
   A random part depends only on the run's seed and the file's name.
6. Images of one target size form a bucket. A bucket that holds fewer samples than a batch (`train_batch_size` for each process, or for each
   group of `context_parallel_size` processes; each image counts `repeats` + 1 times) is kept: its images are repeated until the batch is
   full, and `validate` says how often each is seen. A bucket need not fill an optimizer step, since the batches of a step may come from
   different buckets. `allow_dataset_oversubscription` makes every bucket of a set without `repeats` give at least a complete step.

## Sets of clips

A set of `dataset_type` `video` holds clips, for models that are trained on them ([models.md](models.md)). It is an image set in everything
else: captions, sizes, crops, buckets, `repeats`, conditioning. An eval set holds clips if it has the object `video`.

```json
{"id": "waves", "dataset_type": "video", "instance_data_dir": "/data/waves", "caption_strategy": "textfile",
 "resolution": 480, "video": {"num_frames": 81, "min_frames": 81, "max_frames": 500}}
```

- **Files** are `.mp4`, `.m4v`, `.mov`, `.webm`, `.mkv` and `.avi`, which need PyAV (`pip install '.[video]'`), and animated `.gif` and
  `.webp`. In an image set a `.gif` or `.webp` is the image of its first frame. An image set ignores video files; a set of clips leaves
  images out, and `validate` names them in a note.
- **Length**: the first `num_frames` frames of each clip are trained on, one by one as they are stored, whatever the frame rate is; so save
  clips at the rate that the model is made for. A clip with fewer than `min_frames` or more than `max_frames` is left out. `num_frames` is
  rounded down to a length that the model takes: one frame and a multiple of 4 for Wan. With `bucket_strategy` `resolution_frames` a clip
  gives as many frames as it has, rounded down to a multiple of `frame_interval` and then to what the model takes, and a bucket holds clips
  of one length.
- **Size** is that of the frame as it is shown, after the rotation that phones store. All frames are scaled and cropped together.
- **Colours** are those that the file names, or BT.709 from 720 lines on and BT.601 below. HDR is used as sRGB, with a note.
- **Caches**: addresses of latents contain the number of frames; a set with another `num_frames` is encoded anew. `vae_batch_size` and
  `write_batch_size` are 1 unless the set gives them, since clips are large. Frames are decoded one at a time.
- **References** of a clip are clips with at least its frames, or images; a mask is an image.
- Files with damaged or missing frames are left out, each with the reason. Files of more than a day, of more than a million frames, or of
  codecs that nobody uses for clips are not opened.

## Captions

`.txt` files, tables and lists of filters are UTF-8 or UTF-16, with or without a byte order mark, or Latin-1. A table (`parquet`) has a row
for each file, found by the file's name in the dataset with its folders; of several rows the last one counts. With
`metadata_backend` `parquet` images whose size it holds are not opened before training; one of another size is then left out, and named.

`caption_strategy` gives each file one or more alternative captions, of which one is used at a time: the lines of a text file, the columns
of a table, the texts of `instance_prompt`. `validate` says so where files on this machine have `.txt` files beside them that are not
read (`texts_overlooked`). Then, in this order:

1. `prepend_instance_prompt` puts each instance prompt in front.
2. The entries of `caption_filter_list` of the set's `text_embeds` set are applied, one after the other. `s/find/replace/` replaces what the
   regular expression `find` matches (Python's syntax; `\\1` is a group, `\\/` a slash; `s/find/replace/i` ignores case). Any other entry is
   removed where it stands as it is written, and then, if it is a regular expression, what it matches. Spaces at both ends of a caption are
   removed. A caption that becomes empty is no alternative any more, and a file without any is left out; `validate` names it, and an entry
   that is not valid or takes too long.
3. `caption_shuffle` adds variants with shuffled tags. They depend only on the caption and the seed, and each is cached.

Models read a limited number of tokens and cut off the rest. `validate` notes how many captions, and which prompts of validation images, are
longer (`captions_cut`, `prompts_cut`). It counts with the tokenizer of the base model if that is on this machine, and words otherwise.

The cache holds the embeddings of these texts; so a changed filter encodes only the captions that it changes. `caption_dropout_probability`
trains a sample with the empty prompt instead, whatever its captions are.

## The order of samples

An epoch contains every sample of every set `repeats` + 1 times. The options below change when a sample is seen, but never how often; only
`probability` 0 leaves a set out. A batch holds samples of one bucket of one set. The last batch of a bucket is filled up with samples of
the same bucket that were seen earlier in the epoch. The last optimizer step of an epoch is filled up with the epoch's first batches.

The next batch is always chosen at random from those that are left in the epoch. `data_backend_sampling` decides how:

- `auto-weighting`: each batch that is left has the `probability` of its set as its weight. A bucket is therefore chosen by the number of
  batches that it has left, including `repeats`, times that probability. With equal probabilities the order is a plain shuffle: each tenth
  of an epoch holds about a tenth of every set and every bucket. With `probability` 1.0 and 0.1 and sets of the same size, the epoch starts
  with ten batches of the first set for each batch of the second. The rest of the second set follows when the first one runs out.
- `uniform`: the next set is chosen by `probability` alone among those with batches left, whatever their sizes; within the set every
  remaining batch is equally likely. Of sets with 20 and 200 samples the small one is used up after about 40 batches.

So a run that is shorter than an epoch trains on the requested mixture, and a longer run sees every sample. `validate` reports each set's
share of the batches at the start of an epoch and, if that differs, over the complete epoch. To train more on a set in every epoch, raise
its `repeats`; the set then counts as (`repeats` + 1) times as large in every rule above.

The order depends only on the samples, `seed`, the batch sizes and these options. It is the same on every machine and for any number of
processes that share a batch of one size, and a resumed run continues it. A checkpoint records the version of this rule. A run that resumes
from a checkpoint of an older version reports a warning and orders the rest of that epoch anew. `simpletuner plan --config FILE --steps N`
prints the order without training. It only opens file headers: if training finds that an image's pixels are broken, it leaves the image out,
and the order changes.

## Sets that begin late or end early

`start_epoch` and `start_step` say from when on a set is trained on, `end_epoch` and `end_step` until when; epochs and optimizer steps count
from 1. Both starts must be reached, and either end stops it. At least one set begins at once, and one must be left at every step:
`validate` and the engine refuse a run that outlasts its sets, and warn about a set that the run never reaches. Its conditioning sets and
captions follow an image set; eval sets have no schedule.

- In each epoch every sample of every set that is trained on is seen `repeats` + 1 times.
- A set that begins within an epoch is seen completely in what is left of it: the epoch becomes longer.
- A set that ends within an epoch takes its remaining batches away: the epoch becomes shorter.
- Epochs may therefore differ in length. `num_train_epochs`, intervals in epochs, checkpoints and `validate` all count the real ones, and
  `validate` lists them under `schedule`.

`train_batch_size` gives a set batches of its own size. In an optimizer step with batches of different sizes every sample counts the same:
each micro-batch is weighted by its number of samples.

## New crops in each epoch

Without `vae_cache_clear_each_epoch` an image has one crop in all epochs. With it, `crop_style` `random` crops each image at a new place in
each epoch, and `crop_aspect` `random` to another of `crop_aspect_buckets`: an image gets its possible aspects in turn, each about as often
as its weight says. Aspects that `minimum_aspect_ratio` and `maximum_aspect_ratio` exclude are not chosen. Crops that are not random stay as
they are; `validate` says so in a note.

- A crop follows from the seed, the name of the file and the epoch. A run that is resumed within an epoch trains on the crops that the
  uninterrupted run trains on, and any number of processes trains on the same ones.
- Latents are encoded while training, as with `vae_cache_ondemand`: the autoencoder stays in memory, and files are decoded once at the start
  to leave out broken ones. Nothing has to be cleared, because a crop is part of an entry's address. When an epoch is over, each process
  removes the entries that the next one does not use, except those that another run has noted; so the cache holds the latents of one epoch.
  With `vae_cache_disable` nothing is stored.
- Masks, and references that have the size of their image, share its crop. `reference_loose` references keep theirs.
- New aspects give new buckets, so epochs may differ in length: `validate` lists them under `schedule`. After 1,000 epochs the aspects stay.

## How images get references

An image set names sets of `dataset_type` `conditioning` in `conditioning_data`. An entry with a `conditioning_type` is a conditioning set,
whatever its `dataset_type`. The partner of an image has the same name, including folders, with the same suffix or another one. It is an
error if an image has no partner, or several with other suffixes, or, with `reference_strict`, a partner of another size. A reference
without an image is a warning. The option `conditioning_multidataset_sampling` decides whether a sample is trained with its references from
all sets or with one at a time. A sample has the captions of its image; `caption_strategy` `instanceprompt` gives a conditioning set
captions of its own (`instance_prompt`), for samples whose only reference is of that set. Other caption strategies have no effect there.

## How references are generated

An image set may have its references made of its own images: `conditioning` is an object, or a list of objects, each with a `type` and
the fields of that type. Every object becomes a conditioning set of its own with the id `<id>_conditioning_<type>`, linked to its images;
nothing else has to be written.

```json
{"id": "cats", "instance_data_dir": "/data/cats", "caption_strategy": "textfile",
 "conditioning": [{"type": "superresolution", "downscale_factor": 4, "captions": ["make it sharp", "enlarge it"]},
                  {"type": "canny", "low_threshold": 100, "high_threshold": 200}]}
```

The run makes the files before it caches latents, shows its progress in the stage `init_data_backend`, and can be stopped there; the next
run continues. A file is a PNG of the size of its image in `<cache_dir>/conditioning_data/<id>`. Its name follows from the image's content,
the generator and its fields: nothing is made twice, and changed fields give new files and new latents. A damaged file is made again when it
is read. `validate` makes no file; it counts on each image having one of its size. `captions` (a text or a list) replace the captions of the
images on samples whose only reference is of that set; with `conditioning_multidataset_sampling` `combined` and several references they are
an error. A generated set may also be a mask (`conditioning_type` `mask`), such as `random_masks`. The model of `depth` comes from the hub
or its cache, and estimates on the CPU; `validate` says if it cannot be had.

## How control images steer a network

With the option `controlnet` a run trains a ControlNet beside the frozen network, with `control` the network itself, whose input control
images widen. Every image then needs a control image: a conditioning set with `conditioning_type` `controlnet`, or a generated one, whose
type is then always `controlnet` unless it is a mask. A control image is found by name like a reference, has the size of its image, and is
scaled and cropped exactly like it, also at random. A ControlNet of Stable Diffusion 1, 2 or XL sees its pixels, which are decoded when a
batch needs them: the cache only records which files can be decoded. The other ControlNets, and networks with `control`, see its
latents, which are cached. A sample has one control image; with sets from several generators, `conditioning_multidataset_sampling` `random`
takes one at a time. References of other types are refused in such a run. Without the options, a network that takes references looks at
control images as at references of the same size; any other run refuses them.

```json
{"id": "rooms", "instance_data_dir": "/data/rooms", "caption_strategy": "textfile", "conditioning": [{"type": "canny"}]}
```

## How masks weight the loss

A conditioning set with `conditioning_type` `mask` or `segmentation` holds a mask for each image of the set that names it, found by name
like a reference. A mask has the size of its image, and is scaled and cropped exactly like it, also at random. It is read as greyscale,
without a colour profile; what is transparent is black. It is then averaged to the size of the latents, and never encoded by the
autoencoder, so every family takes it. With `mask` the result is the weight of each place: white counts in full, black not at all, grey in
part. With `segmentation` each place counts in full if any pixel behind it is not black.

The loss of a sample is the sum of its weighted errors, divided by the sum of the weights. A small object therefore has as much influence
as a large one, and a mask of one shade changes nothing. The option `masked_loss_probability` leaves the mask of some samples out, at random
for each sample of a step; such a sample counts in full. An eval set with masks is measured over its masks. `validate` names images without
a mask, and masks of another size. The engine names masks that are all black: nothing is learned from their images. For a clip the mask is
one image, which applies to every frame. A set has one set of masks at most, and may have references as well.

## Eval sets

A set of `dataset_type` `eval` is never trained on: it has no part in epochs, repeats and the order of samples. It takes the fields of an
image set, including `conditioning_data`. `repeats` and `probability` have no effect, and `crop_style` `random` crops in the middle instead,
so that the evaluation loss is the same for every seed. The loss is measured on its first `num_eval_images` images, by name:
[evaluation.md](evaluation.md). `validate` warns about eval images that are also trained on.

## Prior preservation

An adapter that learns a few images of one person soon shows that person everywhere. A set with `is_regularisation_data` (or
`is_regularization_data`) keeps it from that: give it images of what should stay as it is, such as other people with captions of your own.
On its batches the target of the loss is not the image, but what the base model predicts for the same noise, timestep, prompt and
references, with the adapter switched off. `probability` and `repeats` decide how often that happens; such a step costs one more forward
pass. A new adapter has no loss on these batches until it has learned something else. A full fine-tune has no base model beside it, so it
trains on the images of such a set like on any other, and `validate` says so in a note.

## Sliders

A slider is an adapter that shows more of a concept at a positive strength, and less of it at a negative one. It learns from opposites: a
set of images with more of the concept and a set with less of it, with the same captions and about as many images. `slider_strength` is the
strength of the adapter while it learns a set, such as 1 and -1: the adapter's own scale is multiplied by it, in the prediction and its
gradient alike. So the image of a set is what the adapter should show at that strength.

- Batches take turns: one of a positive set, one of a negative set, one of the other sets, which are neutral. A side that has no batches
  left in the epoch is passed over. Within a side, `probability` and `data_backend_sampling` choose the next batch as usual, and every
  sample is still seen `repeats` + 1 times. `validate` counts the turns in each set's share.
- A neutral set is learned at the adapter's usual strength. For images that no strength should change, use `is_regularisation_data` instead.
- The option `slider_lora_target` puts a standard adapter on layers that do not read the prompt: self-attention, the projections at both
  ends of the network, and the embedding of time. For LyCORIS, name such layers in `apply_preset.target_name` of its file.
- `adapter_strength` of prompts in `user_prompt_library` shows both sides in validations: [validation.md](validation.md).

A full fine-tune has no strength, so it is refused. A slider with one side is trained, with a warning.

## Pixels

Images are read as 8-bit sRGB: only the first frame of an animation, transparency on white, deeper greyscale scaled to 8 bits. Colour
profiles (Display P3, Adobe RGB, printing presses, greyscale) and the cICP chunk of a PNG are converted to sRGB with perceptual intent. If a
profile is damaged or made for another kind of image, or the brightness is HDR (PQ, HLG), the numbers in the file are used as sRGB, and
`validate` names the files in a note. Images of more than 134 megapixels are refused. Latents cached before this rule are computed again.
"""

CACHES = f"""## Caches

Latents and text embeddings are computed once, before training, and stored in the cache folders of the sets. The address of an entry is a
hash of everything that its content depends on, so an entry is never out of date. Latents have the type that the autoencoder computes in,
embeddings that of the text encoders: bfloat16 as a rule, float32 on a CPU. Those of Krea 2, twelve states for each token, are always
bfloat16: 61 KB a token. So are those of HiDream-I1, the states of 32 layers with their padding: 34.6 MB a caption. Numbers that were
computed in float32 are rounded by at most 0.4 percent.

- Entries lie in shards of up to 1 GiB with an index each: `shards/*.shard` and `shards/*.index`. 100,000 latents of 1024 px are at most 200
  files. A shard is appended to by one process at a time. An index that is missing or damaged is made again from its shard. Entries of older
  versions, one safetensors file each, are read as before; new ones go to shards.
- Each entry has a checksum. One that is damaged is reported in the log, remembered as such, and computed again. A run that is killed loses
  at most the entries that are not synced yet (`write_batch_size`), and the next one goes on behind them.
- Each process of a run encodes its share. Two runs may fill one cache at the same time: each takes over what the other has made. If memory
  runs out while images are encoded, batches are halved and the run goes on.
- `vae_cache_ondemand` and `text_cache_ondemand` encode when a batch first needs an entry, and store it. `vae_cache_disable` and
  `text_cache_disable` store nothing. The encoders then stay in memory, which `validate` adds to its estimate of the text encoders. Samples
  are encoded one by one, so that nothing depends on their order: on a CPU the weights equal those of a run with `vae_batch_size` 1 bit for
  bit. Images without an entry are still decoded once at the start, so that broken ones are left out of the order of samples.
- `compress_disk_cache` stores entries from 64 KiB on in fewer bytes, without loss: bfloat16 latents in about 72 percent, float32 latents
  as they are. Reading and writing an entry then takes some milliseconds a megabyte longer.
- `simpletuner cache stats | verify | gc` and `/api/cache` count, verify and clean caches: [upkeep.md](upkeep.md).

Captions of {TYPICAL_TOKENS} tokens are assumed below. The states of padding are not stored, except where the network attends to them: those
of CLIP, those of Flux.2, and those of T5 for Flux, Chroma and Stable Diffusion 3.5 without `t5_padding=zero` (and, for Flux, without
`flux_attention_masked_training`). T5 attends to its padding, so these states depend on the caption, and only T5 could compute them again. A
Flux caption therefore takes 4.2 MB, with one of these options a tenth of it, and nothing with `text_cache_disable`. With
`compress_disk_cache` the embeddings are the same and take a tenth to a third: the states of padding differ by 0 to 0.3 percent from one
position to the next. These shares were measured with random weights of T5's architecture (`python -m tests.bench padding`); `simpletuner
cache stats` shows what a cache takes. Coding the differences between positions would save a seventh more. `validate` says what the
captions of a run take from 10 GB on where padding or several states a token are stored, with what stores less.
"""
