from typing import Any

from django.db import migrations, models

from trainer_engine.config.parse import check_options
from training.engine.launcher import LaunchSettings


def fill(apps: Any, schema_editor: Any) -> None:
    """Jobs that were accepted before this field existed and still wait in the queue keep their number of processes."""
    for job in apps.get_model("training", "Job").objects.filter(status="queued"):
        options, _ = check_options(job.options)
        if options is not None:
            job.launch = LaunchSettings.of(options).as_dict()
            job.save(update_fields=["launch"])


class Migration(migrations.Migration):
    dependencies = [("training", "0003_queue_lock")]

    operations = [
        migrations.AddField(model_name="job", name="launch", field=models.JSONField(blank=True, default=dict)),
        migrations.RunPython(fill, migrations.RunPython.noop),
    ]
