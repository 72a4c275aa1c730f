"""Merging a stack into a new version of an adapter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...core.backend import EngineInfo
from ...core.bounds import SEED, Bound
from ...core.compose import ComposeCommand, ComposeMethod
from ...core.errors import FieldViolation, invalid
from ...core.types import Stack
from ...host.failpoints import reach
from ...host.files import storage_errors, sync_folder, write_durable
from ...peft.schema import CARD_FILE, AdapterConfig, check_folder
from ...store.records import AdapterMeta, Composition, VersionRecord
from ..common.checks import check_result_name, metadata_violations, stack_violations
from ..common.context import Context
from ..common.damage import retried
from ..common.shielding import temporary_folder
from ..common.stacks import active, pinned_items
from .checked_backend import stacked
from .compose_worker import Composer
from .publish import publish
from .types import ComposeRequest

DENSITY = 0.5
_MEANING = {
    ComposeMethod.CAT: "The ranks of the parts stand side by side: the delta is the stack's sum, up to rounding.",
    ComposeMethod.SVD: "The delta is the best approximation of the stack's sum at this rank.",
    ComposeMethod.LINEAR: "Weighted sums of the A and of the B factors apart: an approximation with cross terms.",
    ComposeMethod.TIES: "TIES merging of the A and of the B factors apart: an approximation.",
    ComposeMethod.DARE_TIES: "DARE with TIES merging of the A and of the B factors apart: an approximation.",
    ComposeMethod.MAGNITUDE_PRUNE: "Sums of the largest values of the A and of the B factors apart: an approximation.",
}


class ComposeService:
    """One merge at a time: it takes processor time that requests want."""

    def __init__(self, context: Context, run: Composer) -> None:
        self._backend, self._store = context.backend, context.store
        self._info, self._limits = context.info, context.limits
        self._run = run
        self._stacks = context.stacks
        self._turn = asyncio.Lock()

    async def compose(self, request: ComposeRequest) -> VersionRecord:
        """Merge, check, and publish as the next version of ``request.name``, which means it from now on.

        Raises INVALID_ARGUMENT (all bad fields at once; ranks that don't suit the method), NOT_FOUND (an adapter),
        FAILED_PRECONDITION (nothing is left of the delta), PERMISSION_DENIED (a name that is not on the key's list);
        then nothing is stored.
        """
        check_result_name(request.name, request.principal)
        if violations := [*self._violations(request)]:
            raise invalid(violations)
        async with self._turn:
            stack = await self._stacks.resolve(request.adapters, request.principal)
            async with temporary_folder(self._store, "compose") as folder, self._stacks.held(stack):
                return await self._publish(request, stack, folder / "adapter")

    async def _publish(self, request: ComposeRequest, stack: Stack, folder: Path) -> VersionRecord:
        command = self._command(request, active(stack), folder)
        versions = stacked(command.stack)
        result = await retried(lambda: self._store.adapters.files.check_damage(versions), lambda: self._run(command))
        reach("compose.written")
        config = await asyncio.to_thread(self._check, folder)
        composed = Composition(
            method=command.method.value,
            stack=pinned_items(stack),
            error=result.error,
            rank=config.rank if command.method is ComposeMethod.SVD else None,
            density=command.density if command.method.takes_density else None,
            seed=command.seed if command.method is ComposeMethod.DARE_TIES else None,
        )
        card = _render_card(request.name, self._info, composed, request.metadata)
        await asyncio.to_thread(_write_card, folder, card)
        meta = self._meta(request, config, composed)
        reach("compose.before_publish")
        return await publish(
            self._backend,
            self._store,
            request.name,
            folder,
            config.rank,
            lambda: self._store.adapters.publish(request.name, request.principal.tenant, folder, meta),
        )

    def _command(self, request: ComposeRequest, stack: Stack, folder: Path) -> ComposeCommand:
        return ComposeCommand(
            stack=stack,
            method=request.method,
            blobs=str(self._store.blobs.reader.folder),
            output=str(folder),
            modules=dict(self._info.linear_modules),
            base_name=self._info.base_name,
            base_fingerprint=self._info.base_fingerprint,
            rank=request.rank,
            density=DENSITY if request.density is None else request.density,
            seed=request.seed or 0,
            max_rank=self._limits.max_rank,
        )

    def _violations(self, request: ComposeRequest) -> Iterator[FieldViolation]:
        method = request.method
        yield from stack_violations(request.adapters)
        if not any(item.weight for item in request.adapters):
            yield FieldViolation("adapters", "is empty, or has no weight but 0: name at least one adapter to merge")
        if request.rank is not None and method is not ComposeMethod.SVD:
            yield FieldViolation("rank", f"is for method svd only; with {method.value} it follows from the adapters")
        elif request.rank is not None:
            yield from Bound(1, self._limits.max_rank).violations("rank", request.rank)
        if request.density is not None and not method.takes_density:
            takers = ", ".join(m.value for m in ComposeMethod if m.takes_density)
            yield FieldViolation("density", f"is for the methods {takers} only")
        elif request.density is not None:
            yield from Bound(0, 1, above=True).violations("density", request.density)
        if request.seed is not None and method is not ComposeMethod.DARE_TIES:
            yield FieldViolation("seed", "is for method dare_ties only; the others draw nothing")
        elif request.seed is not None:
            yield from SEED.violations("seed", request.seed)
        yield from metadata_violations(request.metadata)

    def _check(self, folder: Path) -> AdapterConfig:
        return check_folder(
            folder,
            self._info.linear_modules,
            self._info.base_fingerprint,
            max_rank=self._limits.max_rank,
            allow_hard_links=True,
        )

    def _meta(self, request: ComposeRequest, config: AdapterConfig, composed: Composition) -> AdapterMeta:
        return AdapterMeta(
            rank=config.rank,
            alpha=config.alpha,
            base_fingerprint=self._info.base_fingerprint,
            target_modules=config.target_modules,
            layers=config.layers,
            metadata=dict(request.metadata),
            composed=composed,
        )


def _write_card(folder: Path, card: str) -> None:
    with storage_errors("cannot write the model card"):
        write_durable(folder / CARD_FILE, card.encode())
        sync_folder(folder)


def _render_card(name: str, info: EngineInfo, composed: Composition, metadata: Mapping[str, str]) -> str:
    """The card as Markdown with the front matter that model hubs read."""
    lines = [
        "---",
        f"base_model: {json.dumps(info.base_name)}",
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags: [lora, nf4, loramux, merge]",
        "---",
        "",
        f"# {name}",
        "",
        f"A LoRA adapter for `{info.base_name}`, merged by loramux with method `{composed.method}`.",
        _MEANING[ComposeMethod(composed.method)],
        "",
        "| part | weight |",
        "|---|---|",
        *(f"| `{item.adapter}` | {item.weight:g} |" for item in composed.stack),
        "",
        f"- Relative error of the summed delta (Frobenius norm): {composed.error:.6g}",
        *(f"- {key}: {value}" for key, value in composed.settings.items()),
        f"- Base fingerprint: `{info.base_fingerprint}`",
    ]
    # JSON keeps whatever the notes hold within its line.
    lines += [f"- {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(metadata.items())]
    return "\n".join(lines) + "\n"
