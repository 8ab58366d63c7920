"""What is read: the lecture grammar with its ground truth, corpora on disk, and tokenizers.

The grammar writes short texts whose determined words are known, the tokenizers turn text into
ids and count the bytes that each id stands for, and the corpora keep the ids of a source,
split into training and validation, in memory-mapped arrays.
"""
