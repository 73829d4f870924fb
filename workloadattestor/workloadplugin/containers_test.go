package workloadplugin

import (
	"fmt"
	"testing"
	"time"

	"github.com/keelson-project/keelson/workloadattestor/runtime"
)

func TestContainersAreRememberedForAWhile(t *testing.T) {
	now := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
	c := containers{now: func() time.Time { return now }}
	if _, ok := c.get("a"); ok {
		t.Error("known before it was seen")
	}
	c.put(runtime.Container{ID: "a", Name: "main"})
	now = now.Add(containerFresh - time.Second)
	if got, ok := c.get("a"); !ok || got.Name != "main" {
		t.Errorf("got %+v, %t", got, ok)
	}
	now = now.Add(time.Second)
	if _, ok := c.get("a"); ok {
		t.Error("known for too long")
	}
	for n := range 2 * maxContainers {
		c.put(runtime.Container{ID: fmt.Sprint(n)})
	}
	if len(c.known) != maxContainers {
		t.Errorf("%d containers are remembered", len(c.known))
	}
	if _, ok := c.get(fmt.Sprint(2*maxContainers - 1)); !ok {
		t.Error("the newest is forgotten")
	}
}
