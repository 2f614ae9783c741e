"""Flask + flask-smorest + Flask-SQLAlchemy, as their quickstarts put them together."""

import os
from datetime import UTC, date, datetime
from uuid import UUID, uuid4

import marshmallow as ma
from flask import Flask
from flask.views import MethodView
from flask_smorest import Api, Blueprint
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Select, String, case, func, or_
from sqlalchemy.dialects.postgresql import ARRAY
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
    priority: Mapped[str] = mapped_column(default="medium")
    due_date: Mapped[date | None]
    tags: Mapped[list[str]] = mapped_column(ARRAY(String(50)), default=list)
    completed_at: Mapped[datetime | None]


SORT_KEYS = {
    "created": Task.created_at,
    "updated": Task.updated_at,
    "title": func.lower(Task.title),
    "due_date": Task.due_date,
    "priority": case({"low": 1, "high": 3, "urgent": 4}, value=Task.priority, else_=2),
}


class Tags(ma.fields.List):
    """Tags, without blank ones and repetitions."""

    def __init__(self, **options):
        tag = ma.fields.String(validate=ma.validate.Length(max=50))
        super().__init__(tag, validate=ma.validate.Length(max=20), **options)

    def _deserialize(self, *arguments, **options):
        tags = super()._deserialize(*arguments, **options)
        return list(dict.fromkeys(filter(None, map(str.strip, tags))))


class TaskSchema(ma.Schema):
    id = ma.fields.UUID(dump_only=True)
    user_id = ma.fields.String(dump_only=True)
    title = ma.fields.String(required=True, validate=ma.validate.Length(1, 500))
    description = ma.fields.String(allow_none=True, validate=ma.validate.Length(max=5000))
    completed = ma.fields.Boolean()
    created_at = ma.fields.DateTime(dump_only=True)
    updated_at = ma.fields.DateTime(dump_only=True)
    priority = ma.fields.String(validate=ma.validate.Length(1, 20))
    due_date = ma.fields.Date(allow_none=True)
    tags = Tags()
    completed_at = ma.fields.DateTime(dump_only=True)


class TaskQuerySchema(ma.Schema):
    status = ma.fields.String(validate=ma.validate.OneOf(("all", "pending", "completed")))
    priority = ma.fields.List(ma.fields.String())
    tag = ma.fields.List(ma.fields.String())
    due_date_from = ma.fields.Date()
    due_date_to = ma.fields.Date()
    search = ma.fields.String(validate=ma.validate.Length(max=200))
    sort = ma.fields.String(validate=ma.validate.OneOf(SORT_KEYS), load_default="created")
    order = ma.fields.String(validate=ma.validate.OneOf(("asc", "desc")), load_default="asc")


blp = Blueprint("tasks", __name__, url_prefix="/api/<user_id>/tasks")


def find(user_id: str, task_id: UUID) -> Task:
    return db.first_or_404(db.select(Task).filter_by(user_id=user_id, id=task_id))


def select_tasks(
    user_id: str,
    *,
    sort: str,
    order: str,
    status: str = "all",
    priority: list[str] | None = None,
    tag: list[str] | None = None,
    due_date_from: date | None = None,
    due_date_to: date | None = None,
    search: str = "",
) -> Select[Task]:
    found = db.select(Task).filter_by(user_id=user_id)
    if status != "all":
        found = found.filter_by(completed=status == "completed")
    if priority:
        found = found.where(Task.priority.in_(priority))
    if tag:
        found = found.where(Task.tags.contains(tag))
    if due_date_from:
        found = found.where(Task.due_date >= due_date_from)
    if due_date_to:
        found = found.where(Task.due_date <= due_date_to)
    if search:
        texts = (Task.title, Task.description)
        found = found.where(or_(*(text.icontains(search, autoescape=True) for text in texts)))
    key = SORT_KEYS[sort]
    return found.order_by((key.desc() if order == "desc" else key.asc()).nulls_last())


def save(task: Task) -> Task:
    task.updated_at = now()
    task.completed_at = (task.completed_at or now()) if task.completed else None
    db.session.commit()
    return task


@blp.route("")
class Tasks(MethodView):
    @blp.arguments(TaskQuerySchema, location="query")
    @blp.response(200, TaskSchema(many=True))
    def get(self, query, user_id):
        return db.session.execute(select_tasks(user_id, **query)).scalars().all()

    @blp.arguments(TaskSchema)
    @blp.response(201, TaskSchema)
    def post(self, body, user_id):
        completed_at = now() if body.get("completed") else None
        task = Task(user_id=user_id, completed_at=completed_at, **body)
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
