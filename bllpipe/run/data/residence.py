"""Where images wait for their batch: in the memory of the GPU as bytes, or with the CPU, drawn and pinned ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import Queue

import torch
from torch import Tensor

from bllpipe.config.schema import GpuConfig
from bllpipe.errors import ConfigError
from bllpipe.run.data.sets import ImageSet, MemoryImages, Split
from bllpipe.run.data.spec import DataSpec

LARGEST_SHARE = 4  # the part of a GPU's memory that images take by themselves: one in so many
DEPTH = 2  # batches that are drawn ahead


def settle(images: ImageSet, config: GpuConfig, device: torch.device) -> ImageSet:
    """The images where ``gpu.images`` wants them; those of a CPU stay."""
    if device.type == "cpu":
        return images
    if stays_on_device(images, config, torch.cuda.mem_get_info(device)[1]):
        assert isinstance(images, MemoryImages), "checked just now"
        return images.on(device)
    return DrawnAhead(images, Tensor.pin_memory)


def stays_on_device(images: ImageSet, config: GpuConfig, memory_bytes: int) -> bool:
    """Whether all images go to a GPU with so much memory. ConfigError when they shall, but are decoded one by one."""
    if not isinstance(images, MemoryImages):
        if config.images == "device":
            raise ConfigError(
                "gpu.images is device, but the images of a folder are decoded as they are needed; "
                "use --set gpu.images=host"
            )
        return False
    fits = images.num_bytes * LARGEST_SHARE <= memory_bytes
    return config.images == "device" or (config.images == "auto" and fits)


class DrawnAhead:
    """An ImageSet whose batches a thread draws, or decodes, while the device is at those before them; ``pin`` puts them
    into memory from which a GPU copies by itself."""

    def __init__(self, images: ImageSet, pin: Callable[[Tensor], Tensor]) -> None:
        self._images, self._pin = images, pin
        self.spec: DataSpec = images.spec
        self.mean, self.std = images.mean, images.std

    def batches(self, wanted: Iterable[tuple[Split, Tensor]]) -> Iterator[Tensor]:
        ready: Queue[Tensor | BaseException | None] = Queue(DEPTH)
        threading.Thread(target=self._draw, args=(wanted, ready), name="images", daemon=True).start()
        while (drawn := ready.get()) is not None:
            if isinstance(drawn, BaseException):
                raise drawn
            yield drawn

    def _draw(self, wanted: Iterable[tuple[Split, Tensor]], ready: Queue[Tensor | BaseException | None]) -> None:
        try:
            for images_BCHW in self._images.batches(wanted):
                ready.put(self._pin(images_BCHW))
            ready.put(None)
        except BaseException as error:  # raised where the batch is asked for
            ready.put(error)
