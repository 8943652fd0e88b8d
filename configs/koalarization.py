r"""Deep Koalarization as in the report: Places365's 36,500 validation pictures, 25 epochs.

    python -m beam_jobs.preprocess --config=configs/koalarization.py \
        --source=places365:val_256.tar --output=DATA
    python -m trainer.train --config=configs/koalarization.py --data=DATA --workdir=RUN

Sources: Baldassarre, Morín and Rodés-Guirao, "Deep Koalarization" (2017), section 3; the Columbia E4040 report (2021)
for the data, the stretched pictures and the learning rates.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The report's recipe; the defaults of everything else."""
    config = ConfigDict()
    config.seed = 2017  # of the deal into splits, the order of shards, flips and initial weights

    config.dataset = ConfigDict()
    config.dataset.layout = "full"  # or "compact": a quarter of the bytes, whole units of a and b
    config.dataset.resize_mode = "stretch"  # or "pad" (on white, as in the original paper) or "crop"
    config.dataset.validation_fraction = 0.1
    # 100 to 500 MB a shard read well from disk and from gs://: 256 of 0.84 MB examples make 215 MB.
    config.dataset.train_shards = 128
    config.dataset.validation_shards = 16

    config.dataset.filters = ConfigDict()  # 0 turns one off; measured, see pipeline/filters.py
    config.dataset.filters.min_side = 32  # pixels of the shorter side
    config.dataset.filters.max_pixels = 50_000_000  # against decompression bombs
    config.dataset.filters.reject_grayscale = True
    config.dataset.filters.min_chroma = 2.0  # mean distance from gray, in Lab units
    config.dataset.filters.min_lightness = 10.0  # mean L, from 0 to 100

    config.model = ConfigDict()
    config.model.name = "koalarization"
    config.model.width_multiplier = 1.0  # of the filters of every trainable layer but the last
    # "imagenet" is downloaded by Keras; a path names a Keras weights file or TF-Slim's checkpoint; None ("none" in an
    # override) leaves them random.
    config.model.feature_weights = config_dict.FieldReference("imagenet", field_type=str)
    config.model.feature_classes = 1000  # outputs of the extractor: 1001 for weights with a background class

    # "one_device", "mirrored" (all GPUs of a machine), "multi_worker" (all machines of TF_CONFIG), or what there is.
    config.strategy = "auto"
    config.batch_size = 32  # over all replicas
    config.learning_rates = (1e-3, 1e-4)
    config.epochs_per_learning_rate = (10, 15)
    config.horizontal_flip = True
    config.clip_norm = 0.0  # the largest norm of a step's gradient; 0 for any
    config.deterministic = True  # the same weights from every run, for a little speed

    config.features = "auto"  # "stored" (by beam_jobs.embed), "computed" in every step, or stored if there are any
    config.precision = "float32"  # or "mixed_bfloat16" (TPUs, GPUs since A100) or "mixed_float16" (older GPUs)
    config.xla = False  # compile what computes gradients: minutes at the start, on GPUs faster after that
    config.accumulation_steps = 1  # parts that a replica's share of a batch is computed in, where memory is short
    config.steps_per_call = 1  # where steps are so short that calling them takes time

    config.profile_steps = (0, 0)  # the first and the last step of a profile for TensorBoard; 0 for none
    config.panel_pictures = 8  # validation pictures shown in TensorBoard
    config.steps_per_log = 50  # losses reach TensorBoard and the progress bar this often, all of them
    config.steps_per_checkpoint = 1000  # and at the end of each epoch; what a killed run loses at most
    config.kept_checkpoints = 3  # the newest; the one of the lowest validation loss is kept besides
    config.input_memory_mib = 1024  # what batches may fill while they wait to be trained on, on each host
    return config
