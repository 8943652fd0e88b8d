#!/bin/bash
# Builds an image, beam or trainer, and pushes it to Artifact Registry under the names of a commit and of a branch. Layers
# that are as they were are taken from what the branch, or else main, was pushed with before.
#
#     docker/build.sh NAME REGION-docker.pkg.dev/PROJECT/REPOSITORY COMMIT BRANCH
set -euo pipefail

if (($# != 4)); then
  echo "docker/build.sh takes a name, a repository, a commit and a branch, not $# arguments" >&2
  exit 2
fi
image=$2/$1
commit=$image:${3:?is empty: name a commit}
name=${4:?is empty: name a branch}
branch=$image:${name//[^A-Za-z0-9_.-]/-}  # which may have a slash; a tag has none

export DOCKER_BUILDKIT=1
docker build --platform=linux/amd64 --file="docker/$1.Dockerfile" --build-arg=BUILDKIT_INLINE_CACHE=1 \
  --cache-from="$branch" --cache-from="$image:main" --tag="$commit" --tag="$branch" .
docker push "$commit"
docker push "$branch"
