package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

func attestedPods(n int, at time.Time) []snapshot.Attested {
	var out []snapshot.Attested
	for i := range n {
		out = append(out, snapshot.Attested{Namespace: "payments", Name: fmt.Sprintf("api-%d", i), UID: fmt.Sprintf("0b1c2d3e-%08d", i), Node: fmt.Sprintf("node-%d", i%50),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}, At: at})
	}
	return out
}

// counted is an API server in memory that counts writes.
func counted(writes *int) client.Client {
	return fake.NewClientBuilder().WithInterceptorFuncs(interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			*writes++
			return c.Create(ctx, o, opts...)
		},
		Update: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
			*writes++
			return c.Update(ctx, o, opts...)
		},
	}).Build()
}

// TestWhatIsRememberedOutlivesAReplica: and a steady state writes nothing but, every quarter of an hour, the time.
func TestWhatIsRememberedOutlivesAReplica(t *testing.T) {
	writes := 0
	c := counted(&writes)
	at := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	pods := attestedPods(500, at)
	m := NewMemory(c, c, "keelson-system")
	if err := m.Save(t.Context(), pods); err != nil || writes != shards {
		t.Fatalf("%v, %d writes", err, writes)
	}
	for i := range pods {
		pods[i].At = at.Add(10 * time.Minute)
	}
	if err := m.Save(t.Context(), pods); err != nil || writes != shards {
		t.Errorf("%v, a steady state was written: %d writes", err, writes)
	}
	next := NewMemory(c, c, "keelson-system")
	got, err := next.Load(t.Context())
	if err != nil || len(got) != len(pods) {
		t.Fatalf("%d of %d remembered, %v", len(got), len(pods), err)
	}
	byUID := map[string]snapshot.Attested{}
	for _, a := range got {
		byUID[a.UID] = a
	}
	for _, p := range pods {
		if p.At = at; !reflect.DeepEqual(byUID[p.UID], p) {
			t.Fatalf("got %+v, want %+v", byUID[p.UID], p)
		}
	}
	if err := next.Save(t.Context(), pods); err != nil || writes != shards {
		t.Errorf("%v, a replica that took over wrote %d ConfigMaps", err, writes-shards)
	}
	pods[0].Addresses = append(pods[0].Addresses, netip.MustParseAddr("fd00::1"))
	if err := next.Save(t.Context(), pods); err != nil || writes != shards+1 {
		t.Errorf("%v, one pod's address is %d writes", err, writes-shards)
	}
}

func TestAHundredThousandPodsFitIntoTheMemory(t *testing.T) {
	pods := attestedPods(maxPods, time.Now())
	var parts [shards][]snapshot.Attested
	for _, p := range pods {
		parts[shardOf(p.UID)] = append(parts[shardOf(p.UID)], p)
	}
	for i, part := range parts {
		content, err := pack(part)
		if err != nil {
			t.Fatal(err)
		}
		got, err := unpack(content)
		if err != nil || len(got) != len(part) {
			t.Errorf("shard %d: %d of %d pods in %d bytes, %v", i, len(got), len(part), len(content), err)
		}
	}
}

// TestAMemoryThatCannotBeReadIsForgotten: the rest of it is not.
func TestAMemoryThatCannotBeReadIsForgotten(t *testing.T) {
	writes := 0
	c := counted(&writes)
	m := NewMemory(c, c, "keelson-system")
	pods := attestedPods(100, time.Now())
	if err := m.Save(t.Context(), pods); err != nil {
		t.Fatal(err)
	}
	broken := &corev1.ConfigMap{}
	key := client.ObjectKey{Namespace: "keelson-system", Name: memoryName(shardOf(pods[0].UID))}
	if err := c.Get(t.Context(), key, broken); err != nil {
		t.Fatal(err)
	}
	broken.BinaryData = map[string][]byte{memoryKey: []byte("no gzip")}
	if err := c.Update(t.Context(), broken); err != nil {
		t.Fatal(err)
	}
	next := NewMemory(c, c, "keelson-system")
	got, err := next.Load(t.Context())
	if !errors.Is(err, ErrForgotten) || len(got) == 0 || len(got) >= len(pods) {
		t.Errorf("%d of %d, %v", len(got), len(pods), err)
	}
	if err := next.Save(t.Context(), pods); err != nil {
		t.Error(err)
	}
	if got, err := NewMemory(c, c, "keelson-system").Load(t.Context()); err != nil || len(got) != len(pods) {
		t.Errorf("after it was written again: %d, %v", len(got), err)
	}
}

func FuzzUnpack(f *testing.F) {
	content, err := pack(attestedPods(3, time.Unix(1800000000, 0)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(content)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, content []byte) {
		pods, err := unpack(content)
		if err != nil {
			return
		}
		for _, p := range pods {
			if p.UID == "" || p.Node == "" || len(p.Addresses) == 0 {
				t.Errorf("taken: %+v", p)
			}
		}
	})
}
