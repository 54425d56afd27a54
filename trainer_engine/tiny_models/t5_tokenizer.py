"""A T5 tokenizer with a small vocabulary: common words of captions as one token each, everything else letter by letter."""

from __future__ import annotations

import string

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import T5Tokenizer

WORDS = """a an the of on in at with and to from under over near behind between two three small large big tiny soft bright dark
red green blue yellow orange purple pink brown black white grey golden silver teal
circle square triangle star heart ring stripe stripes dot dots cross moon sun shape pattern background
photo picture painting drawing sketch poster portrait landscape style light morning evening night day sky sea lake river
mountain forest tree flower field house door window street city boat car cat dog bird horse fish fox owl bear man woman child
glass wood stone paper water fire snow rain cloud studio"""
WORD_SCORE, LETTER_SCORE = -4.0, -12.0


def build_tokenizer() -> T5Tokenizer:
    """Unigram with the special tokens of T5. Letters that are not in the vocabulary become ``<unk>``."""
    letters = ["▁", *string.ascii_lowercase, *string.ascii_uppercase, *string.digits, *string.punctuation]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(f"▁{word}", WORD_SCORE) for word in dict.fromkeys(WORDS.split())] + [(letter, LETTER_SCORE) for letter in letters]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5Tokenizer(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", extra_ids=0)
