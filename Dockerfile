FROM python:3.13-slim-trixie

# PORT tells the service that it is deployed: it listens on every IPv4 address.
# Two heaps, instead of one for each thread: many long lists at once take half the memory.
ENV PORT=8000 PYTHONUNBUFFERED=1 MALLOC_ARENA_MAX=2

WORKDIR /app
COPY requirements.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore -r requirements.txt
COPY . ./

# The user "nobody", as a number, which Kubernetes needs for runAsNonRoot.
USER 65534:65534

HEALTHCHECK --timeout=5s --start-period=10s CMD ["python", "-c", "\
import http.client, os;\
server = http.client.HTTPConnection('127.0.0.1', os.environ['PORT'], timeout=4);\
server.request('GET', '/health');\
exit(server.getresponse().status != 200)"]

CMD ["gunicorn"]
