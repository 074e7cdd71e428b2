"""The writer of Python source: from the captured graph to classes of torch modules.

``regions`` sorts the captured operators by the modules that called them, ``layers`` and ``operators`` write them,
``bodies`` writes methods, ``drafts`` and ``classes`` find the modules that share a class, ``writing`` puts the file
together, and ``text`` lays it out.
"""

from convwright.export.source.writing import Source, source_of

__all__ = ["Source", "source_of"]
