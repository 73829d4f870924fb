package workloadplugin

import (
	"strconv"
	"testing"
)

func TestOnceRemembersABoundedNumber(t *testing.T) {
	var o once
	if o.first("") {
		t.Error("no key is new")
	}
	for i := range 3 * maxTold {
		if key := strconv.Itoa(i); !o.first(key) || o.first(key) {
			t.Fatalf("key %s is not new exactly once", key)
		}
	}
	if len(o.seen) != maxTold || len(o.ring) != maxTold {
		t.Errorf("remembers %d and %d, want %d", len(o.seen), len(o.ring), maxTold)
	}
	if !o.first("0") || o.first(strconv.Itoa(3*maxTold-1)) {
		t.Error("the oldest are not the ones that are forgotten")
	}
}
