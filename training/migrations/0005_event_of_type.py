from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0004_job_launch")]

    operations = [
        migrations.AddIndex(model_name="event", index=models.Index(fields=["job", "type", "index"], name="event_of_type")),
    ]
