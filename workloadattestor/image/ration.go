package image

import (
	"context"
	"errors"
	"sync"
	"time"
)

// ration is the time that sources may take together. It is safe for concurrent use.
type ration struct {
	mu   sync.Mutex
	left time.Duration
}

// rationed is a source that has a part of the time. The same image may have further names on a node, of which any tenant may add one
// whose registry is slow.
type rationed struct {
	source
	ration *ration
}

// errRationed means that the time for further names of an image is used up.
var errRationed = unheard{errors.New("the image's other names on this node have used up their time")}

// within runs ask with what is left of the time.
func (r rationed) within(ctx context.Context, ask func(context.Context) error) error {
	r.ration.mu.Lock()
	left := r.ration.left
	r.ration.mu.Unlock()
	if left <= 0 {
		return errRationed
	}
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	begun := time.Now()
	err := ask(ctx)
	r.ration.mu.Lock()
	defer r.ration.mu.Unlock()
	r.ration.left -= time.Since(begun)
	return err
}

func (r rationed) signatures(ctx context.Context, subject string) (places []string, err error) {
	err = r.within(ctx, func(ctx context.Context) (err error) {
		places, err = r.source.signatures(ctx, subject)
		return err
	})
	return places, err
}

func (r rationed) manifest(ctx context.Context, ref string) (raw []byte, err error) {
	err = r.within(ctx, func(ctx context.Context) (err error) {
		raw, err = r.source.manifest(ctx, ref)
		return err
	})
	return raw, err
}

func (r rationed) blob(ctx context.Context, digest string) (raw []byte, err error) {
	err = r.within(ctx, func(ctx context.Context) (err error) {
		raw, err = r.source.blob(ctx, digest)
		return err
	})
	return raw, err
}
