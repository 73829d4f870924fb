package syncer

import (
	"context"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/workloadattestor/image"
)

type owners struct{ asked []image.Owner }

func (o *owners) Keychain(_ context.Context, of image.Owner) (authn.Keychain, error) {
	o.asked = append(o.asked, of)
	return nil, nil
}

// TestTheCheckerIsToldWhoseImageItIs: without an owner no one's secrets are read.
func TestTheCheckerIsToldWhoseImageItIs(t *testing.T) {
	secrets := &owners{}
	c, err := image.New(image.Config{Now: time.Now, PullSecrets: secrets})
	if err != nil {
		t.Fatal(err)
	}
	check := Checker(c)
	key := snapshot.ImageKey{Image: "registry.example/a:1", ImageID: "registry.example/a@sha256:" + digits}
	check(t.Context(), key)
	key.Owner = snapshot.ImageOwner{Namespace: "a", Account: "api"}
	check(t.Context(), key)
	key.Owner.PullSecrets = "one,two"
	check(t.Context(), key)
	want := []image.Owner{{Namespace: "a", Account: "api"}, {Namespace: "a", Account: "api", PullSecrets: []string{"one", "two"}}}
	if !reflect.DeepEqual(secrets.asked, want) {
		t.Errorf("asked %+v, want %+v", secrets.asked, want)
	}
}

const digits = "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"
