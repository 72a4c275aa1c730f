"""Two tenants behind one LiteLLM router: each has a key of its own on the server, and adapters of its own.

    pip install litellm
    python examples/litellm_router.py http://127.0.0.1:8000/v1 acme=lmx_... pine=lmx_...

Each word is MODEL=KEY: the name of an adapter or stack, and the key of the tenant that has it (loramux keys create).
The router gives each the same question under a name of its own, and prints what answers.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from litellm import Router

QUESTION = "Where is the shop?"


def make_router(base_url: str, models: Sequence[tuple[str, str]]) -> Router:
    """A router that knows ``shop-0``, ``shop-1``, ...: each a model (adapter or stack) and the key of its tenant."""
    return Router(
        model_list=[
            {
                "model_name": f"shop-{i}",
                "litellm_params": {"model": f"openai/{model}", "api_base": base_url, "api_key": key},
            }
            for i, (model, key) in enumerate(models)
        ],
        num_retries=2,  # with the waits that the server asks for
    )


async def ask(router: Router, name: str, question: str = QUESTION) -> str:
    """The answer of one of the router's models, as it comes."""
    messages = [{"role": "user", "content": question}]
    stream = await router.acompletion(name, messages=messages, stream=True, max_tokens=40)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def main(base_url: str, *words: str) -> None:
    """Ask all at once."""
    models = [(model, key) for model, _, key in (word.partition("=") for word in words)]
    router = make_router(base_url, models)
    names = [f"shop-{i}" for i in range(len(models))]
    for (model, _), answer in zip(models, await asyncio.gather(*(ask(router, name) for name in names)), strict=True):
        print(f"{model}: {answer}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
