"""One frame from each of UCF101's videos."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from vlprompt.base.files import atomic_write
from vlprompt.errors import VlpromptError


def class_folder(name: str) -> str:
    """Split camel case as the published frames' folders do.

    >>> class_folder("HandstandPushups"), class_folder("YoYo")
    ('Handstand_Pushups', 'Yo_Yo')
    """
    return "_".join(re.findall("[A-Z][^A-Z]*", name)) or name


def write_middle_frames(
    videos: Path, target: Path, progress: Callable[[int, int], None] | None = None
) -> tuple[int, int]:
    """Write the middle frame of ``videos/<Class>/<clip>.avi`` to ``target/<Class_Name>/<clip>.jpg``.

    Frames that are there already are kept.

    Returns:
        The numbers of frames written and kept.
    """
    clips = sorted(videos.glob("*/*.avi"))
    if not clips:
        raise VlpromptError(f"no videos are in {videos}: expected CLASS/CLIP.avi, as UCF101's archive has them")
    written = 0
    for done, clip in enumerate(clips, start=1):
        frame = target / class_folder(clip.parent.name) / f"{clip.stem}.jpg"
        if not frame.exists():
            image = middle_frame(clip)
            with atomic_write(frame) as temporary:
                image.save(temporary, "JPEG", quality=95)
            written += 1
        if progress:
            progress(done, len(clips))
    return written, len(clips) - written


def middle_frame(path: Path) -> Image.Image:
    """Decode a video and return its middle frame (number ⌊n/2⌋ of n, counted from 0) as RGB."""
    try:
        import av
    except ImportError:
        raise VlpromptError("frames are read from videos by PyAV, which is not installed: pip install av") from None
    try:
        with av.open(str(path)) as video:
            count = sum(1 for _ in video.decode(video=0))
        with av.open(str(path)) as video:
            for number, frame in enumerate(video.decode(video=0)):
                if number == count // 2:
                    image: Image.Image = frame.to_image()
                    return image
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise VlpromptError(f"the video {path} cannot be read ({error}): get it again") from error
    raise VlpromptError(f"the video {path} has no frames: get it again")
