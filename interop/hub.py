"""Models by their name on the Hugging Face Hub: the files that we read, through the Hub's own cache."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors, utils

from errors import UserError

# The files that are read, and never a pickle.
FILES = [
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "added_tokens.json",
]


def download(name: str, field: str = "config.init_from", log: Callable[[str], None] = print) -> Path:
    """The folder of a model, `bert-base-uncased` or `hf:bert-base-uncased`; from the cache if there is no network.

    Args:
        field: the name of the flag or config field, for messages.
        log: is told what is fetched, in a line.

    Raises:
        UserError: there is no such model, it may not be had without a token, or the Hub cannot be reached.
    """
    name = name.removeprefix("hf:")
    log(f"hub: fetching {name}")
    utils.disable_progress_bars()
    utils.logging.set_verbosity_error()
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES))
    except errors.GatedRepoError as error:
        mend = f"Accept its terms at https://huggingface.co/{name}, then: hf auth login"
        raise UserError(field, f"hf:{name} is gated", mend) from error
    except errors.RepositoryNotFoundError as error:
        mend = "Check the name; for a private model: hf auth login"
        raise UserError(field, f"the Hub has no model {name}", mend) from error
    except errors.HFValidationError as error:
        raise UserError(field, f"hf:{name} is no name on the Hub", "Write hf:OWNER/MODEL.") from error
    except errors.LocalEntryNotFoundError as error:
        mend = "Connect to the network, or name a folder with the files."
        raise UserError(field, f"hf:{name} is not in the cache, and the Hub is out of reach", mend) from error
    except Exception as error:  # the library lets through what its own libraries raise
        mend = "Try again, or name a folder with the files."
        raise UserError(field, f"hf:{name} could not be fetched ({str(error)[:200]})", mend) from error
    if not any(folder.glob("model*.safetensors")):
        mend = "Where transformers is, load it, then model.save_pretrained(FOLDER), and name the folder."
        raise UserError(field, f"hf:{name} has no weights as safetensors", mend)
    return folder
