from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("training", "0002_webhooks")]

    operations = [migrations.RenameModel(old_name="Desk", new_name="QueueLock")]
