"""Text becomes numbers: documents and corpora, tokenizers with their vocabularies, token files and batches."""
