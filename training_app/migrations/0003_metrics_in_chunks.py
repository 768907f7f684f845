import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('training_app', '0002_checkpoints_to_choose_from'),
    ]

    operations = [
        migrations.AddField(
            model_name='trainingjob',
            name='held_out_losses',
            field=models.JSONField(blank=True, default=list),
        ),
        migrations.DeleteModel(name='TrainingMetric'),
        migrations.CreateModel(
            name='TrainingMetric',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('chunk', models.PositiveIntegerField()),
                ('points', models.JSONField(default=list)),
                ('job', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='metrics', to='training_app.trainingjob')),
            ],
            options={
                'ordering': ('chunk',),
                'constraints': [models.UniqueConstraint(fields=('job', 'chunk'), name='one_row_per_chunk_of_steps')],
            },
        ),
    ]
