from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0005_event_of_type")]

    operations = [
        migrations.AddField(model_name="job", name="turn", field=models.BigIntegerField(default=0, editable=False)),
        migrations.RunSQL("UPDATE training_job SET turn = number", migrations.RunSQL.noop),
        migrations.RemoveIndex(model_name="job", name="job_status_number"),
        migrations.AddIndex(model_name="job", index=models.Index(fields=["status", "turn"], name="job_status_turn")),
    ]
