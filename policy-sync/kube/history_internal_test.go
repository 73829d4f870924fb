package kube

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/keelson-project/keelson/policy-sync/history"
)

func ranImages(n int) []history.Image {
	at := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	var out []history.Image
	for i := range n {
		out = append(out, history.Image{Namespace: fmt.Sprintf("ns-%03d", i%100), Account: "api", Reference: fmt.Sprintf("r.example/app:%06d", i),
			Manifests: []string{"sha256:" + fmt.Sprintf("%064x", i*7919)}, First: at, Last: at, Nodes: []string{"fra-1"}})
	}
	return out
}

// TestTheHistoryOutlivesAReplica: and a steady state writes nothing.
func TestTheHistoryOutlivesAReplica(t *testing.T) {
	writes := 0
	c := counted(&writes)
	h := NewHistory(c, c, "keelson-system")
	images := ranImages(400)
	if err := h.Save(t.Context(), images); err != nil || writes != historyShards {
		t.Fatalf("%v, %d writes", err, writes)
	}
	next := NewHistory(c, c, "keelson-system")
	got, err := next.Load(t.Context())
	if err != nil || len(got) != len(images) {
		t.Fatalf("%d of %d, %v", len(got), len(images), err)
	}
	want, _ := history.New(images).Images()
	if have, _ := history.New(got).Images(); !reflect.DeepEqual(have, want) {
		t.Error("what was kept is not what was saved")
	}
	if err := next.Save(t.Context(), images); err != nil || writes != historyShards {
		t.Errorf("%v, a replica that took over wrote %d ConfigMaps", err, writes-historyShards)
	}
	images[0].Nodes = append(images[0].Nodes, "par-1")
	if err := next.Save(t.Context(), images); err != nil || writes != historyShards+1 {
		t.Errorf("%v, one image is %d writes", err, writes-historyShards)
	}
}

func TestAHistoryThatCannotBeReadIsForgotten(t *testing.T) {
	writes := 0
	c := counted(&writes)
	h := NewHistory(c, c, "keelson-system")
	if err := h.Save(t.Context(), ranImages(200)); err != nil {
		t.Fatal(err)
	}
	broken := &corev1.ConfigMap{}
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: "keelson-system", Name: historyName(0)}, broken); err != nil {
		t.Fatal(err)
	}
	for at := range broken.BinaryData[historyKey] {
		broken.BinaryData[historyKey][at] ^= 1
		if images, err := UnpackHistory(broken); err == nil && at > 9 { // gzip's header has bytes that say nothing
			t.Fatalf("byte %d: %d images", at, len(images))
		}
		broken.BinaryData[historyKey][at] ^= 1
	}
	broken.BinaryData[historyKey] = []byte("x")
	if err := c.Update(t.Context(), broken); err != nil {
		t.Fatal(err)
	}
	got, err := NewHistory(c, c, "keelson-system").Load(t.Context())
	if !errors.Is(err, ErrForgotten) || !strings.Contains(err.Error(), historyName(0)) || len(got) == 0 || len(got) == 200 {
		t.Errorf("%d images, %v", len(got), err)
	}
	away := interceptor.NewClient(counted(&writes).(client.WithWatch), interceptor.Funcs{Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
		return errors.New("the API is away")
	}})
	if _, err := NewHistory(away, away, "keelson-system").Load(t.Context()); err == nil || errors.Is(err, ErrForgotten) {
		t.Errorf("an API that is away: %v", err)
	}
}

// TestAHistoryThatDoesNotFit keeps what was seen last.
func TestAHistoryThatDoesNotFit(t *testing.T) {
	images := ranImages(40_000)
	for i := range images {
		images[i].Last = images[i].Last.Add(time.Duration(i) * time.Second)
	}
	content, err := packHistory(images)
	if err != nil || len(content) > maxShard {
		t.Fatalf("%d bytes, %v", len(content), err)
	}
	got, err := UnpackHistory(&corev1.ConfigMap{BinaryData: map[string][]byte{historyKey: content}})
	if err != nil || len(got) == 0 || !got[0].Last.Equal(images[len(images)-1].Last) {
		t.Errorf("%d images, %v", len(got), err)
	}
	t.Logf("%d of %d images are %d bytes", len(got), len(images), len(content))
}

func FuzzUnpackHistory(f *testing.F) {
	content, err := packHistory(ranImages(3))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(content)
	f.Add([]byte{})
	f.Fuzz(func(_ *testing.T, content []byte) {
		images, err := UnpackHistory(&corev1.ConfigMap{BinaryData: map[string][]byte{historyKey: content}})
		if err == nil {
			history.New(images).Images()
		}
	})
}
