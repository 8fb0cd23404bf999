"""A finished cell given to another job: its files under that job's names, as if it had been computed there.

The files are linked, not copied, so it costs no time and no space, and each job's files can be removed on their own.
"""

from shared.errors import OutputNotFound
from shared.jobs import CellRecord, Job, cell_name
from shared.storage import FolderStorage, name_of


def take_over(
    storage: FolderStorage, record: CellRecord, origin: tuple[str, str, str], job: Job, side: str
) -> tuple[CellRecord, int] | None:
    """Give `job` a cell of another job.

    Args:
        record: the cell as it was delivered there.
        origin: (job id, side, model) it was delivered for; `job` gets it for `side` and the same model.
    Returns:
        The cell's record in `job`, and how many of its work files (the small copies that a job's review compares) were
        still there; None when one of its results is gone.
    Raises:
        OutputNotWritten: the volume takes no more files.
    """
    old_job_id, old_side, model = origin
    old_prefix = f"_{old_job_id}_{old_side}_"
    urls = {"": record.url, **record.files}
    new_urls = {}
    try:
        for kind, url in urls.items():
            name = name_of(url or "")
            stem, _, ext = name.partition(old_prefix)[2].rpartition(".")  # rmbg and png, rmbg_print and png, ...
            new_name = storage.output_name(job.id, job.job_id, side, stem, ext)
            storage.link_output(name, new_name)
            new_urls[kind] = storage.url(new_name)
    except OutputNotFound:
        return None
    linked = 0
    for name in storage.work_files(old_job_id):
        stem, _, kind = name.rpartition("-")  # front_rmbg-alpha.npy
        if stem == cell_name(old_side, model) and name.endswith(".npy"):
            try:
                storage.link_work(old_job_id, name, job.job_id, f"{cell_name(side, model)}-{kind}")
            except OutputNotFound:
                continue  # removed just now
            linked += 1
    taken = record.model_copy(
        update={"url": new_urls.pop(""), "files": new_urls, "cached": True, "seconds": 0.0}, deep=True
    )
    return taken, linked
