"""What can be refused before torch is imported, so that a mistake costs a second and not ten."""

from __future__ import annotations

from importlib.util import find_spec

from bllpipe.config import Config
from bllpipe.config.resnets import residual_units, unit_name
from bllpipe.config.schema import PIPELINES
from bllpipe.errors import ConfigError
from bllpipe.learn.cuts import bounds
from bllpipe.run.data.downloads import DEFAULT_PATH, DOWNLOADS, check_obtainable
from bllpipe.run.data.listing import split_folders
from bllpipe.run.data.spec import PUBLISHED, check_given
from bllpipe.run.itinerary import Plan


def check_plan(config: Config) -> None:
    """Raises ConfigError for a cut that the network does not allow or a batch that well-known data cannot fill."""
    if ":" not in config.model.name:
        is_cut = config.engine in PIPELINES or not config.is_end_to_end
        cuts = config.balanced or config.blocks if is_cut else 1
        bounds([unit_name(*unit) for unit in residual_units(config.model.name)], cuts)
    if config.data.name in PUBLISHED:
        Plan.of(config, PUBLISHED[config.data.name].num_train, PUBLISHED[config.data.name].num_test)
    if config.data.name == "synthetic":
        Plan.of(config, config.data.synthetic_images, num_test=1)


def check_installed(config: Config) -> None:
    """Raises ConfigError for an engine of a package that an ordinary installation does not bring. Only where the run
    takes place."""
    if config.engine == "deepspeed" and find_spec("deepspeed") is None:
        raise ConfigError(
            "engine deepspeed needs the package deepspeed, which is not installed; use pip install 'bllpipe[deepspeed]'"
        )


def check_data(config: Config) -> None:
    """Raises DataError for files that are not there or hold what cannot be trained on. Only for a process on the
    machine that has the data."""
    check_given(config.data)
    if config.data.name == "npz":
        _check_archive(config)
    if config.data.name in DOWNLOADS:
        check_obtainable(config.data.name, config.data.path or DEFAULT_PATH)
    if config.data.name == "imagefolder":
        split_folders(str(config.data.path))


def _check_archive(config: Config) -> None:
    from bllpipe.run.data.archive import open_archive  # NumPy, which few runs need here

    archive = open_archive(str(config.data.path))
    Plan.of(config, archive.spec.num_train, archive.spec.num_test)
    archive.check_floats()
