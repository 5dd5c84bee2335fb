#!/bin/sh
echo "this test never ends"
exec sleep 3600
