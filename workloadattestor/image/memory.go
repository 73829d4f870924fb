package image

import (
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"sync"
)

// maxMemory bounds the bytes of documents that are kept.
const maxMemory = 32 << 20

// memory keeps documents by digest. What a digest says cannot change, so a document is fetched once, and a try that ran out
// of time leaves to the next one what it has fetched. It keeps the documents used last.
type memory struct {
	mu    sync.Mutex
	left  int
	order *list.List // of digests, the one used last in front
	items map[string]*list.Element
}

type remembered struct {
	digest  string
	content []byte
}

func newMemory(limit int) *memory {
	return &memory{left: limit, order: list.New(), items: map[string]*list.Element{}}
}

func (m *memory) get(digest string) ([]byte, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.items[digest]
	if !ok {
		return nil, false
	}
	m.order.MoveToFront(e)
	r, ok := e.Value.(remembered)
	return r.content, ok
}

// put keeps content under its own digest, so what is kept is always what its key says.
func (m *memory) put(content []byte) {
	sum := sha256.Sum256(content)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.items[digest]; ok {
		return
	}
	m.items[digest] = m.order.PushFront(remembered{digest, content})
	m.left -= len(content)
	for m.left < 0 {
		last := m.order.Back()
		r, ok := m.order.Remove(last).(remembered)
		if !ok {
			return
		}
		delete(m.items, r.digest)
		m.left += len(r.content)
	}
}

// remembering is a source that asks for a document once.
type remembering struct {
	source
	memory *memory
}

func (r remembering) manifest(ctx context.Context, ref string) ([]byte, error) {
	return r.through(ref, func() ([]byte, error) { return r.source.manifest(ctx, ref) })
}

func (r remembering) blob(ctx context.Context, digest string) ([]byte, error) {
	return r.through(digest, func() ([]byte, error) { return r.source.blob(ctx, digest) })
}

func (r remembering) through(ref string, ask func() ([]byte, error)) ([]byte, error) {
	if content, ok := r.memory.get(ref); ok && strings.HasPrefix(ref, "sha256:") {
		return content, nil
	}
	content, err := ask()
	if err == nil && len(content) <= maxDocument && checkDigest(ref, content) == nil {
		r.memory.put(content)
	}
	return content, err
}
