"""The photos and videos of a folder, and what is ignored in it."""

from collections import Counter
from pathlib import Path

from im2wav.files import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, same_name, walk_files
from im2wav.media.video import is_animation


def media_kind(path: Path) -> str:
    """`image`, `video` or `audio`, by the suffix; a GIF or WebP is a video if it is animated. Empty for other files."""
    suffix = path.suffix.lower()
    if suffix in (".gif", ".webp"):
        return "video" if is_animation(path) else "image"
    kinds = {"image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES, "audio": AUDIO_SUFFIXES}
    return next((kind for kind, suffixes in kinds.items() if suffix in suffixes), "")


class MediaFolder:
    """The photos and videos below a folder, each with the audio file of the same name.

    Of a photo and a video of one name (a Live Photo, a download with its thumbnail), the video is taken.

    Attributes:
        items: path, `image` or `video`, and the path of the audio file or None; sorted by path.
        ignored: other entries, with the reason.
    """

    def __init__(self, folder: Path):
        files, self.ignored = walk_files(folder)
        found: dict[str, list[tuple[Path, str]]] = {"image": [], "video": [], "audio": [], "": []}
        for path in files:
            kind = media_kind(path)
            found[kind].append((path, same_name(str(path.with_suffix("")))))
        audio: dict[str, Path] = {}
        for path, stem in found["audio"]:
            if stem in audio:
                self.ignored.append((path, f"{audio[stem].name} has the same name"))
            else:
                audio[stem] = path
        videos = {stem for _, stem in found["video"]}
        self.items = [(path, "video", audio.get(stem)) for path, stem in found["video"]]
        for path, stem in found["image"]:
            if stem in videos:
                self.ignored.append((path, "a video has the same name"))
            else:
                self.items.append((path, "image", audio.get(stem)))
        used = {path for _, _, path in self.items}
        self.ignored += [(path, "no photo or video has the same name") for path in audio.values() if path not in used]
        self.ignored += [(path, "no media file") for path, _ in found[""]]
        self.items.sort(key=lambda item: item[0])

    def describe_ignored(self, examples: int = 3) -> list[str]:
        """One line for each reason: how many files, and the first of them."""
        count = Counter(reason for _, reason in self.ignored)
        lines = []
        for reason, number in count.most_common():
            names = [ascii_safe(path.name) for path, why in self.ignored if why == reason]
            more = ", ..." if number > examples else ""
            lines.append(f"ignored {number}: {', '.join(names[:examples])}{more} ({reason})")
        return lines


def ascii_safe(name: str) -> str:
    """A name as it can be printed, whatever bytes it holds."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
