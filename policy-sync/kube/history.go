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
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/history"
)

const (
	// historyShards is over how many ConfigMaps the history is spread, by namespaces. Those without an image are not made.
	historyShards = 8
	// historyKey is the key of a ConfigMap's content: gzip of a JSON list of history.Image.
	historyKey = "images.json.gz"
	// maxHistory bounds the images of one ConfigMap that are read.
	maxHistory = 50_000
)

func historyName(shard int) string { return fmt.Sprintf("keelson-policy-sync-history-%d", shard) }

// HistoryNames are the ConfigMaps that hold which images workloads ran.
func HistoryNames() []string {
	var out []string
	for i := range historyShards {
		out = append(out, historyName(i))
	}
	return out
}

// History keeps which images workloads ran, in ConfigMaps of policy-sync's own namespace. Nothing is decided by it: whoever forged it
// could hide, or make up, that a name has moved. One goroutine at a time uses it.
type History struct {
	place
	kept [historyShards][sha256.Size]byte // of the content that is there
}

// NewHistory reads from reader, which must be no cache.
func NewHistory(reader client.Reader, writer client.Writer, namespace string) *History {
	return &History{place: place{reader, writer, namespace}}
}

// Load returns what is kept. An error that wraps ErrForgotten comes with the rest; any other means that nothing is known.
func (h *History) Load(ctx context.Context) ([]history.Image, error) {
	var out []history.Image
	var problems []error
	for i, name := range HistoryNames() {
		c := &corev1.ConfigMap{}
		err := h.reader.Get(ctx, client.ObjectKey{Namespace: h.namespace, Name: name}, c)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("kube: ConfigMap %s/%s: %w", h.namespace, name, err)
		}
		images, err := UnpackHistory(c)
		if err != nil {
			problems = append(problems, fmt.Errorf("kube: ConfigMap %s/%s: %w: %w", h.namespace, name, ErrForgotten, err))
			continue
		}
		h.kept[i] = sha256.Sum256(c.BinaryData[historyKey])
		out = append(out, images...)
	}
	return out, errors.Join(problems...)
}

// UnpackHistory reads one of HistoryNames.
func UnpackHistory(c *corev1.ConfigMap) ([]history.Image, error) {
	z, err := gzip.NewReader(bytes.NewReader(c.BinaryData[historyKey]))
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
	var list []history.Image
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	if len(list) > maxHistory {
		return nil, fmt.Errorf("%d images, more than %d", len(list), maxHistory)
	}
	return list, nil
}

// packHistory makes a ConfigMap's content: the same bytes for the same images. Of more than fit, those seen last are kept.
func packHistory(images []history.Image) ([]byte, error) {
	list := slices.Clone(images)
	slices.SortFunc(list, func(a, b history.Image) int { return cmp.Or(b.Last.Compare(a.Last), history.Compare(a, b)) })
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

// Save writes the ConfigMaps whose content is another than before.
func (h *History) Save(ctx context.Context, images []history.Image) error {
	var parts [historyShards][]history.Image
	for _, i := range images {
		hash := fnv.New32a()
		_, _ = hash.Write([]byte(i.Namespace)) // a hash takes everything
		shard := hash.Sum32() % historyShards
		parts[shard] = append(parts[shard], i)
	}
	var problems []error
	for i, part := range parts {
		content, err := packHistory(part)
		if err != nil {
			problems = append(problems, fmt.Errorf("kube: %s: %w", historyName(i), err))
			continue
		}
		sum := sha256.Sum256(content)
		if sum == h.kept[i] || len(part) == 0 && h.kept[i] == [sha256.Size]byte{} {
			continue
		}
		if err := h.put(ctx, historyName(i), func(c *corev1.ConfigMap) { c.Data, c.BinaryData = nil, map[string][]byte{historyKey: content} }); err != nil {
			problems = append(problems, err)
			continue
		}
		h.kept[i] = sum
	}
	return errors.Join(problems...)
}
