package verify_test

import (
	"reflect"
	"slices"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/verify"
)

// TestTheOrderIsInTheTypes: what a step lets its caller do, and nothing of another step, so that a
// wrong order does not compile.
func TestTheOrderIsInTheTypes(t *testing.T) {
	for _, step := range []struct {
		of      any
		methods []string
	}{
		{&verify.Challenge{}, []string{"EK", "MachineEKs", "Message", "Prove", "Stop"}},
		{&verify.Proved{}, []string{"EK", "MachineEKs", "Named", "Stop", "Token"}},
		{&verify.Named{}, []string{"Bind", "EK", "MachineEKs", "Node", "Stop"}},
		{&verify.Bound{}, []string{"EK", "MachineEKs", "Node", "Read", "Revoked", "Stop"}},
		{&verify.Complete{}, []string{"Finish"}},
	} {
		typ := reflect.TypeOf(step.of)
		var got []string
		for i := range typ.NumMethod() {
			got = append(got, typ.Method(i).Name)
		}
		if !slices.Equal(got, step.methods) {
			t.Errorf("%s has methods %v, want %v", typ, got, step.methods)
		}
		for i := range typ.Elem().NumField() {
			if f := typ.Elem().Field(i); f.IsExported() {
				t.Errorf("%s.%s can be set by a caller", typ, f.Name)
			}
		}
	}
}
