"""Flask + flask-smorest + Flask-SQLAlchemy, as their quickstarts put them together."""

import os
from datetime import UTC, datetime
from uuid import UUID, uuid4

import marshmallow as ma
from flask import Flask
from flask.views import MethodView
from flask_smorest import Api, Blueprint
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


def now() -> datetime:
    return datetime.now(UTC)


class Task(db.Model):
    __tablename__ = "peer_task"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    user_id: Mapped[str] = mapped_column(index=True)
    title: Mapped[str]
    description: Mapped[str | None]
    completed: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now)


class TaskSchema(ma.Schema):
    id = ma.fields.UUID(dump_only=True)
    user_id = ma.fields.String(dump_only=True)
    title = ma.fields.String(required=True, validate=ma.validate.Length(1, 500))
    description = ma.fields.String(allow_none=True, validate=ma.validate.Length(max=5000))
    completed = ma.fields.Boolean()
    created_at = ma.fields.DateTime(dump_only=True)
    updated_at = ma.fields.DateTime(dump_only=True)


blp = Blueprint("tasks", __name__, url_prefix="/api/<user_id>/tasks")


def find(user_id: str, task_id: UUID) -> Task:
    return db.first_or_404(db.select(Task).filter_by(user_id=user_id, id=task_id))


def save(task: Task) -> Task:
    task.updated_at = now()
    db.session.commit()
    return task


@blp.route("")
class Tasks(MethodView):
    @blp.response(200, TaskSchema(many=True))
    def get(self, user_id):
        query = db.select(Task).filter_by(user_id=user_id).order_by(Task.created_at)
        return db.session.execute(query).scalars().all()

    @blp.arguments(TaskSchema)
    @blp.response(201, TaskSchema)
    def post(self, body, user_id):
        task = Task(user_id=user_id, **body)
        db.session.add(task)
        db.session.commit()
        return task


@blp.route("/<uuid:task_id>")
class TaskById(MethodView):
    @blp.response(200, TaskSchema)
    def get(self, user_id, task_id):
        return find(user_id, task_id)

    @blp.arguments(TaskSchema(partial=True))
    @blp.response(200, TaskSchema)
    def put(self, body, user_id, task_id):
        task = find(user_id, task_id)
        for name, value in body.items():
            setattr(task, name, value)
        return save(task)

    def delete(self, user_id, task_id):
        db.session.delete(find(user_id, task_id))
        db.session.commit()
        return {"message": "Task deleted successfully"}


@blp.route("/<uuid:task_id>/complete")
class TaskCompletion(MethodView):
    @blp.response(200, TaskSchema)
    def patch(self, user_id, task_id):
        task = find(user_id, task_id)
        task.completed = not task.completed
        return save(task)


def create_app() -> Flask:
    app = Flask(__name__)
    url = os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg2:")
    app.config.update(
        SQLALCHEMY_DATABASE_URI=url,
        # One for each thread: by default it keeps five, and opens and closes the others.
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 20},
        API_TITLE="Tasks",
        API_VERSION="1",
        OPENAPI_VERSION="3.0.3",
    )
    app.json.sort_keys = False
    db.init_app(app)
    Api(app).register_blueprint(blp)
    app.get("/health")(lambda: {"status": "ok"})
    return app
