"""Where a batch's cached tokens are kept, and what that makes of the split as the context grows."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.plan.policies import Split


@dataclass(frozen=True)
class Placement:
    """Where cached tokens are kept, and who attends to those on the host.

    Pages on the device are filled first, whatever row they are for; what does not fit there goes to
    the host. X is kept of prompts only, and instead of their K/V; generated tokens are K/V.

    Attributes:
        recompute: share of each prompt's tokens in pages that is kept as X, 0 to 1.
        resident_pages: most pages of K/V on the device, over all rows; None: all pages of K/V.
        host: share of the K/V on the host that the host's cores attend to, 0 to 1.
    """

    recompute: float = 0.0
    resident_pages: int | None = 0
    host: float = 0.0

    @property
    def all_resident(self) -> bool:
        """Whether nothing is on the host."""
        return self.resident_pages is None and self.recompute == 0

    def split(self, rows: int, admitted_pages: int, pages: int) -> Split:
        """Return how a row's pages are divided over the paths.

        Args:
            rows: sequences, all alike.
            admitted_pages: pages of each prompt.
            pages: pages of each row now. Where there are none, the nominal split is returned.
        """
        if pages == 0:
            pages = admitted_pages = 1
        recompute = self.recompute * min(admitted_pages, pages) / pages
        if self.resident_pages is None:
            resident = 1.0 - recompute
        else:
            resident = min(1.0 - recompute, self.resident_pages / (rows * pages))
        on_host = max(0.0, 1.0 - recompute - resident)
        host = self.host * on_host
        return Split(resident, max(0.0, 1.0 - resident - recompute - host), recompute, host)

    @classmethod
    def of(
        cls, split: Split, rows: int, admitted_pages: int, pages: int, *, keep_all: bool = False
    ) -> Placement:
        """Return the placement that makes a split at so many pages, in whole pages.

        The prompt's share of X is larger than the split's, for new tokens are K/V: it makes up for
        them as far as it can.

        Args:
            split: the split to reach.
            rows: sequences, all alike.
            admitted_pages: pages of each prompt.
            pages: pages of each row at which the split is to be reached.
            keep_all: whether pages on the device are unlimited.
        """
        on_host = split.stream + split.host
        share = split.host / on_host if on_host else 0.0
        recompute = split.recompute
        if admitted_pages:
            recompute = min(1.0, split.recompute * pages / admitted_pages)
        resident = int(split.resident * rows * pages + 1e-6)
        return cls(recompute, None if keep_all else resident, share)
