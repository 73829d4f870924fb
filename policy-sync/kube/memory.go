package kube

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

const (
	// shards is over how many ConfigMaps the memory is spread, by pods' UIDs. Those without a pod are not made.
	shards = 16
	// maxShard bounds one ConfigMap's content; an API server takes 1 MiB. Of more pods the newest are kept.
	maxShard = 900_000
	// maxUnpacked bounds what a ConfigMap's content may become, maxPods how many pods it may name.
	maxUnpacked = 64 << 20
	maxPods     = 100_000
	// grain is how exact it is remembered when a pod was last attested: a steady state is written four times an hour.
	grain = 15 * time.Minute
)

// memoryKey is the key of a ConfigMap's content: gzip of a JSON list.
const memoryKey = "attested.json.gz"

// HeartbeatName names the ConfigMap that says when policy-sync last made a pass that succeeded.
const HeartbeatName = "keelson-policy-sync-heartbeat"

func memoryName(shard int) string { return fmt.Sprintf("keelson-policy-sync-memory-%d", shard) }

// MemoryNames are the ConfigMaps that policy-sync writes in its own namespace: the memory, the heartbeat and the history.
func MemoryNames() []string {
	out := []string{HeartbeatName}
	for i := range shards {
		out = append(out, memoryName(i))
	}
	return append(out, HistoryNames()...)
}

// Memory keeps, beyond the life of a replica, which addresses and images attested pods had, in ConfigMaps of policy-sync's own
// namespace. No pod gets a label by it. Whoever forged it could have addresses revoked that nobody trusted has, and could let a pod on
// a trusted node keep, for Config.PendingGrace, labels that it bears. One goroutine at a time uses it.
type Memory struct {
	reader    client.Reader
	writer    client.Writer
	namespace string
	kept      [shards][sha256.Size]byte // of the content that is there
}

// NewMemory reads from reader, which must be no cache.
func NewMemory(reader client.Reader, writer client.Writer, namespace string) *Memory {
	return &Memory{reader: reader, writer: writer, namespace: namespace}
}

// remembered is a pod in a ConfigMap's content.
type remembered struct {
	Namespace string       `json:"ns"`
	Name      string       `json:"name"`
	UID       string       `json:"uid"`
	Node      string       `json:"node"`
	Addresses []netip.Addr `json:"ips"`
	At        int64        `json:"at"` // Unix time in seconds
	// Pending is Unix time in seconds, zero for none.
	Pending int64                `json:"pending,omitempty"`
	Images  []snapshot.UsedImage `json:"images,omitempty"`
}

// ErrForgotten says that a part of the memory was there and could not be understood. It is as good as absent.
var ErrForgotten = errors.New("what is remembered of attested pods' addresses cannot be read and is forgotten")

// Load returns what is remembered. An error that wraps ErrForgotten comes with the rest; any other means that nothing is known.
func (m *Memory) Load(ctx context.Context) ([]snapshot.Attested, error) {
	var out []snapshot.Attested
	var problems []error
	for i := range shards {
		c := &corev1.ConfigMap{}
		err := m.reader.Get(ctx, client.ObjectKey{Namespace: m.namespace, Name: memoryName(i)}, c)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("kube: ConfigMap %s/%s: %w", m.namespace, memoryName(i), err)
		}
		pods, err := unpack(c.BinaryData[memoryKey])
		if err != nil {
			problems = append(problems, fmt.Errorf("kube: ConfigMap %s/%s: %w: %w", m.namespace, c.Name, ErrForgotten, err))
			continue
		}
		m.kept[i] = sha256.Sum256(c.BinaryData[memoryKey])
		out = append(out, pods...)
	}
	return out, errors.Join(problems...)
}

// unpack reads a ConfigMap's content.
func unpack(content []byte) ([]snapshot.Attested, error) {
	z, err := gzip.NewReader(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(z, maxUnpacked+1))
	switch {
	case err != nil:
		return nil, err
	case len(text) > maxUnpacked:
		return nil, fmt.Errorf("more than %d bytes", maxUnpacked)
	}
	var list []remembered
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	if len(list) > maxPods {
		return nil, fmt.Errorf("%d pods, more than %d", len(list), maxPods)
	}
	out := make([]snapshot.Attested, 0, len(list))
	for _, r := range list {
		usable := func(a netip.Addr) bool { return a.IsValid() && a.Zone() == "" && !a.IsUnspecified() }
		if r.UID == "" || r.Node == "" || len(r.Addresses) == 0 || slices.ContainsFunc(r.Addresses, func(a netip.Addr) bool { return !usable(a) }) {
			return nil, fmt.Errorf("pod %.80q (UID %.80q) lacks a UID, a node or a usable address", r.Namespace+"/"+r.Name, r.UID)
		}
		a := snapshot.Attested{Namespace: r.Namespace, Name: r.Name, UID: r.UID, Node: r.Node, Addresses: r.Addresses, At: time.Unix(r.At, 0).UTC(), Images: r.Images}
		if r.Pending != 0 {
			a.Pending = time.Unix(r.Pending, 0).UTC()
		}
		out = append(out, a)
	}
	return out, nil
}

// pack makes a ConfigMap's content: the same bytes for the same pods.
func pack(pods []snapshot.Attested) ([]byte, error) {
	list := make([]remembered, 0, len(pods))
	for _, p := range pods {
		if len(p.Addresses) == 0 {
			continue // nothing of it could be revoked
		}
		r := remembered{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Node: p.Node, Addresses: p.Addresses, At: p.At.Truncate(grain).Unix(), Images: p.Images}
		if !p.Pending.IsZero() {
			r.Pending = p.Pending.Unix()
		}
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b remembered) int { return cmp.Or(cmp.Compare(b.At, a.At), cmp.Compare(a.UID, b.UID)) })
	for {
		text, err := json.Marshal(list)
		if err != nil {
			return nil, err
		}
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		_, err = z.Write(text)
		if err := errors.Join(err, z.Close()); err != nil {
			return nil, err
		}
		if out.Len() <= maxShard {
			return out.Bytes(), nil
		}
		list = list[:len(list)*9/10]
	}
}

func shardOf(uid string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(uid)) // a hash takes everything
	return int(h.Sum32() % shards)
}

// Save writes the ConfigMaps whose content is another than before.
func (m *Memory) Save(ctx context.Context, pods []snapshot.Attested) error {
	var parts [shards][]snapshot.Attested
	for _, p := range pods {
		i := shardOf(p.UID)
		parts[i] = append(parts[i], p)
	}
	var problems []error
	for i, part := range parts {
		content, err := pack(part)
		if err != nil {
			problems = append(problems, fmt.Errorf("kube: %s: %w", memoryName(i), err))
			continue
		}
		sum := sha256.Sum256(content)
		if sum == m.kept[i] || len(part) == 0 && m.kept[i] == [sha256.Size]byte{} {
			continue
		}
		if err := m.put(ctx, memoryName(i), func(c *corev1.ConfigMap) { c.Data, c.BinaryData = nil, map[string][]byte{memoryKey: content} }); err != nil {
			problems = append(problems, err)
			continue
		}
		m.kept[i] = sum
	}
	return errors.Join(problems...)
}

// Beat notes that a pass succeeded.
func (m *Memory) Beat(ctx context.Context, at time.Time) error {
	return m.put(ctx, HeartbeatName, func(c *corev1.ConfigMap) { c.Data = map[string]string{"lastSynced": at.UTC().Format(time.RFC3339)} })
}

// put makes or updates a ConfigMap.
func (m *Memory) put(ctx context.Context, name string, fill func(*corev1.ConfigMap)) error {
	return place{m.reader, m.writer, m.namespace}.put(ctx, name, fill)
}

// place is where ConfigMaps of policy-sync's own are.
type place struct {
	reader    client.Reader
	writer    client.Writer
	namespace string
}

func (m place) put(ctx context.Context, name string, fill func(*corev1.ConfigMap)) error {
	c := &corev1.ConfigMap{}
	err := m.reader.Get(ctx, client.ObjectKey{Namespace: m.namespace, Name: name}, c)
	switch {
	case apierrors.IsNotFound(err):
		c = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: m.namespace, Name: name, Labels: map[string]string{v1alpha1.OwnerLabel: v1alpha1.OwnerValue}}}
		fill(c)
		err = m.writer.Create(ctx, c, fieldOwner)
	case err == nil:
		fill(c)
		err = m.writer.Update(ctx, c, fieldOwner)
	}
	if err != nil {
		return fmt.Errorf("kube: ConfigMap %s/%s: %w", m.namespace, name, err)
	}
	return nil
}
