package verdict

import (
	"encoding/json"
	"reflect"
	"testing"
)

// What is read from the file of pending verdicts is written the same, and is read again.
func FuzzPending(f *testing.F) {
	f.Add([]byte(`{"fra-1":{"node":"fra-1","ekHash":"ab","agentID":"spiffe://example.org/a","trusted":true,"reference":"prod","tags":{"country":"DE"},` +
		`"tagSerial":7,"receivedAt":"2026-11-02T12:00:00Z","validUntil":"2026-11-02T13:00:00Z"}}`))
	f.Add([]byte(`{"fra-1":{"node":"fra-1","refusals":[{"check":"ima.file","reason":"why"}]}}`))
	f.Add([]byte(`{"fra-1":{"node":"par-1"}}`))
	f.Add([]byte(`{"":{}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		pending, err := parsePending(data)
		if err != nil {
			return
		}
		for node, r := range pending {
			if node == "" || r.Node != node {
				t.Errorf("the result of %q stands under %q", r.Node, node)
			}
		}
		written, err := marshalPending(pending)
		if err != nil {
			t.Skip("a time that cannot be written: ", err) // a year above 9999
		}
		again, err := parsePending(written)
		if err != nil {
			t.Fatalf("%q became %q: %v", data, written, err)
		}
		once, err1 := json.Marshal(pending)
		twice, err2 := json.Marshal(again)
		if err1 != nil || err2 != nil || !reflect.DeepEqual(once, twice) {
			t.Errorf("%q became %q", once, twice)
		}
	})
}
