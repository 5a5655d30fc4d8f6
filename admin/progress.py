"""The progress of a command that takes its time: a bar with rate and remaining time on a terminal, else lines.

Owns how it looks. What is done, and of how much, the node says.
"""

from types import TracebackType
from typing import IO, Any


class ProgressView:
    """Shows progress on a stream. Use it in a `with`, and show nothing after it."""

    def __init__(self, stream: IO[str], color: bool = True) -> None:
        self._stream = stream
        self._color = color
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "ProgressView":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, text: str, done: int, total: int) -> None:
        """Show a line, if there is one, and how many of how many are done, if that is known."""
        if not self._stream.isatty():
            if text:
                print(text, file=self._stream, flush=True)
            return
        if total and self._bar is None:
            self._bar = self._make_bar()
            self._task = self._bar.add_task("queues", total=total)
        if total:
            self._bar.update(self._task, completed=done, total=total)
        if text and self._bar is not None:
            # Above the bar, which stays where it is. A line that is too long is the terminal's to break.
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif text:
            print(text, file=self._stream, flush=True)

    def _make_bar(self) -> Any:
        # Here, because rich takes longer to load than the rest of a command in a script.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class RateColumn(ProgressColumn):
            """How many are done in a second."""

            def render(self, task: Any) -> Text:
                return Text(f"{task.finished_speed or task.speed or 0:.0f}/s")

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeRemainingColumn(),
            console=Console(file=self._stream, no_color=not self._color),
        )
        bar.start()
        return bar
