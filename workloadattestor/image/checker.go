package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"golang.org/x/sync/singleflight"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// Config says where images and signatures are looked for and who may vouch for them.
type Config struct {
	// Registries that may be asked: "host", "host:port", or "host/repository/prefix". No other one is ever asked.
	Registries []string
	// InsecureRegistries may be asked without TLS; they need not be listed in Registries again.
	InsecureRegistries []string
	// Keychain gives credentials; nil asks anonymously.
	Keychain authn.Keychain
	// Layouts are directories in OCI image layout, searched before any registry.
	Layouts []string
	// Verifiers, each with a name of its own. None is fine: digests are bound, nothing is signed-by.
	Verifiers []Verifier
	// Platform of the node, unless Running says another. It decides only when a runtime reports an index digest.
	Platform Platform
	// TTL is how long a proof is served without being made again; zero means DefaultTTL.
	TTL time.Duration
	// FailureTTL is how long a failure is served; zero means DefaultFailureTTL. Keep it short: a signature that is
	// pushed now should count soon.
	FailureTTL time.Duration
	// Timeout bounds the work for one image; zero means DefaultTimeout.
	Timeout time.Duration
	// Now is the clock.
	Now func() time.Time
}

// Defaults of Config.
const (
	DefaultTTL        = 15 * time.Minute
	DefaultFailureTTL = 10 * time.Second
	DefaultTimeout    = 15 * time.Second
)

// maxCached bounds each cache. A node runs a few hundred images at most.
const maxCached = 2048

// Checker binds images to manifests and checks signatures. It is safe for concurrent use.
type Checker struct {
	config     Config
	layouts    []source
	registries *registries
	bindings   *cache[bound]
	verdicts   *cache[struct{}]
	flight     singleflight.Group
}

// Result is what was proved about an image, and why the rest was not.
//
// Where the runtime reports no more than an index, what runs is one of the images to which that index can lead, and which one
// is not known. Then Manifests are all of them, and who asks for some property of the image has to ask it of each.
type Result struct {
	// Config is zero if more than one image may be what runs.
	Config workloadclaim.ConfigDigest
	// Manifests are sorted. Each one's config is Config, or each one may be what runs.
	Manifests []workloadclaim.ManifestDigest
	// Indexes lead to every one of Manifests and Unread; sorted. The reported index is among them.
	Indexes []workloadclaim.IndexDigest
	// Unread are digests of entries that may be what runs and could not be read.
	Unread []string
	// SignedBy are the sorted names of the verifiers that accepted the image, whichever of Manifests and Unread it is.
	SignedBy []string
	// Failures has one entry per verifier that did not, in configuration order.
	Failures []Failure
}

// Failure is why one verifier did not accept an image.
type Failure struct {
	Verifier string
	Reason   error
}

// New makes a Checker. All problems of the configuration are reported at once.
func New(c Config) (*Checker, error) {
	var problems []error
	if c.Now == nil {
		problems = append(problems, errors.New("image: no clock"))
	}
	for i, v := range c.Verifiers {
		same := func(other Verifier) bool { return other.Name() == v.Name() }
		if slices.ContainsFunc(c.Verifiers[:i], same) {
			problems = append(problems, fmt.Errorf("image: two verifiers are named %q", v.Name()))
		}
	}
	var layouts []source
	for _, dir := range c.Layouts {
		l, err := newLayout(dir)
		if err != nil {
			problems = append(problems, err)
		}
		layouts = append(layouts, l)
	}
	reg, err := newRegistries(c.Registries, c.InsecureRegistries, c.Keychain)
	if err != nil {
		problems = append(problems, err)
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	c.TTL = orDefault(c.TTL, DefaultTTL)
	c.FailureTTL = orDefault(c.FailureTTL, DefaultFailureTTL)
	c.Timeout = orDefault(c.Timeout, DefaultTimeout)
	return &Checker{
		config:     c,
		layouts:    layouts,
		registries: reg,
		bindings:   newCache[bound](maxCached),
		verdicts:   newCache[struct{}](maxCached),
	}, nil
}

func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// Check says what can be proved about the image. An error means that the image could not be bound to any manifest,
// so nothing is known about it; failures of single verifiers are in the result.
func (c *Checker) Check(ctx context.Context, running Running) (Result, error) {
	q, err := parseRunning(running, c.registries.insecure)
	if err != nil {
		return Result{}, err
	}
	type answer struct {
		result Result
		err    error
	}
	// Many replicas of one image start at once: one of them asks. The work is detached from the first caller's
	// context, so that its hanging up does not fail the others.
	ch := c.flight.DoChan(q.key(), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.config.Timeout)
		defer cancel()
		result, err := c.check(ctx, q)
		return answer{result, err}, nil
	})
	select {
	case <-ctx.Done():
		return Result{}, fmt.Errorf("image: %w", ctx.Err())
	case done := <-ch:
		a, ok := done.Val.(answer)
		if !ok {
			return Result{}, errors.New("image: check ended without an answer")
		}
		return a.result, a.err
	}
}

func (c *Checker) check(ctx context.Context, q question) (Result, error) {
	sources := append(slices.Clone(c.layouts), c.registries.sources(q)...)
	b, err := c.bind(ctx, sources, q)
	if err != nil {
		return Result{}, err
	}
	result := b.result()
	signatures := &signatureReader{sources: sources, subjects: b.subjects()}
	for _, v := range c.config.Verifiers {
		if err := c.verify(ctx, v, q, b, signatures); err != nil {
			result.Failures = append(result.Failures, Failure{Verifier: v.Name(), Reason: err})
			continue
		}
		result.SignedBy = append(result.SignedBy, v.Name())
	}
	slices.Sort(result.SignedBy)
	if len(result.SignedBy) == 0 {
		// Nobody vouches for the index, so it matters that its entries cannot be told or read.
		if err := b.doubt(); err != nil {
			return Result{}, err
		}
	}
	return result, nil
}

// result is what the documents say, before a verifier was asked.
func (b bound) result() Result {
	var r Result
	for i, c := range b.contents {
		r.Manifests = append(r.Manifests, c.manifests...)
		if c.unread != "" {
			r.Unread = append(r.Unread, c.unread)
		}
		if i == 0 {
			r.Indexes = slices.Clone(c.indexes)
		}
		r.Indexes = slices.DeleteFunc(r.Indexes, func(d workloadclaim.IndexDigest) bool { return !slices.Contains(c.indexes, d) })
	}
	if len(b.contents) == 1 {
		r.Config = b.contents[0].config
	}
	slices.SortFunc(r.Manifests, func(x, y workloadclaim.ManifestDigest) int { return strings.Compare(x.String(), y.String()) })
	slices.SortFunc(r.Indexes, func(x, y workloadclaim.IndexDigest) int { return strings.Compare(x.String(), y.String()) })
	slices.Sort(r.Unread)
	return r
}

// doubt is why nothing can be said of an image for which no verifier vouches.
func (b bound) doubt() error {
	if b.odd != nil {
		return b.odd
	}
	var whys []error
	for _, c := range b.contents {
		if c.unread == "" {
			return nil
		}
		whys = append(whys, fmt.Errorf("image: entry %s of the index: %w", short(c.unread), c.why))
	}
	return errors.Join(whys[:min(len(whys), maxRefusals)]...)
}

func (c *Checker) bind(ctx context.Context, sources []source, q question) (bound, error) {
	cached, ok := c.bindings.get(q.key(), c.config.Now())
	if ok && c.config.Now().Before(cached.renew) {
		return cached.value, cached.err
	}
	platform := q.platform
	if platform == (Platform{}) {
		platform = c.config.Platform
	}
	b, err := bind(ctx, sources, q, platform)
	if err != nil {
		// What was bound by digests stays true; only that it can be shown again is not.
		if kept, ok := c.bindings.putBad(q.key(), err, c.config.Now(), c.config.FailureTTL, true); ok {
			return kept.value, nil
		}
		return bound{}, err
	}
	c.bindings.putGood(q.key(), b, c.config.Now(), c.config.TTL)
	return b, nil
}

// verify answers for one verifier, from the cache where it can. The question is part of the key: it says which
// repositories were asked.
func (c *Checker) verify(ctx context.Context, v Verifier, q question, b bound, signatures *signatureReader) error {
	key := v.Name() + "\n" + strings.Join(b.subjects(), ",") + "\n" + q.key()
	cached, ok := c.verdicts.get(key, c.config.Now())
	if ok && c.config.Now().Before(cached.renew) {
		return cached.err
	}
	var found []signed
	var problems []error
	if v.needsSignatures() {
		found, problems = signatures.read(ctx)
	}
	if err := acceptAll(v, b, found); err != nil {
		err = errors.Join(append([]error{err}, problems...)...)
		// With every source heard, the signature is gone: that counts now. Otherwise the old proof lasts its time.
		unheard := len(problems) > 0
		if _, kept := c.verdicts.putBad(key, err, c.config.Now(), c.config.FailureTTL, unheard); kept {
			return nil
		}
		return err
	}
	c.verdicts.putGood(key, struct{}{}, c.config.Now(), c.config.TTL)
	return nil
}

// signatureReader reads an image's signatures once for all verifiers, and only if one needs them.
type signatureReader struct {
	sources  []source
	subjects []string
	done     bool
	found    []signed
	problems []error
}

func (r *signatureReader) read(ctx context.Context) ([]signed, []error) {
	if !r.done {
		r.found, r.problems = collectSignatures(ctx, r.sources, r.subjects)
		r.done = true
	}
	return r.found, r.problems
}
