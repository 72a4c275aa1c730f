"""Text in and token ids out, and back: tokenizer, chat template, incremental detokenisation, stop strings.

Built on ``tokenizers`` and Jinja alone, so that the front never loads a model library.
"""

from .chat.chat_template import ChatTemplate
from .detokenizer import Detokenizer
from .stop import StopMatcher
from .tokenizer import TextTokenizer

__all__ = ["ChatTemplate", "Detokenizer", "StopMatcher", "TextTokenizer"]
