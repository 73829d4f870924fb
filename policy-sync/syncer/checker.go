package syncer

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/workloadattestor/image"
)

// Checker asks the same verifiers as the workload attestor does about what a container's status says of its image.
func Checker(c *image.Checker) CheckImage {
	return func(ctx context.Context, key snapshot.ImageKey) snapshot.Image {
		running := image.Running{Ref: key.ImageID, Name: key.Image, Platform: platform(key.Platform),
			Owner: image.Owner{Namespace: key.Owner.Namespace, Account: key.Owner.Account}}
		if key.Owner.PullSecrets != "" {
			running.Owner.PullSecrets = strings.Split(key.Owner.PullSecrets, ",")
		}
		if key.Asked != "" {
			running.Hints = []string{key.Asked}
		}
		result, err := c.Check(ctx, running)
		if err != nil {
			return snapshot.Image{Problem: err.Error(), Final: !unheard(err)}
		}
		out := snapshot.Image{Verifiers: map[string]snapshot.Verification{}, Partial: len(result.Unread) > 0}
		for _, m := range result.Manifests {
			out.Manifests = append(out.Manifests, m.String())
		}
		// An entry that may be what runs and could not be read is a manifest that no policy lists.
		out.Manifests = append(out.Manifests, result.Unread...)
		for _, i := range result.Indexes {
			out.Indexes = append(out.Indexes, i.String())
		}
		if !result.Config.IsZero() {
			out.Config = result.Config.String()
		}
		for _, s := range result.Signatures {
			out.SignedBy = append(out.SignedBy, strings.TrimSpace(s.Verifier+" "+s.Subject))
		}
		slices.Sort(out.SignedBy)
		for _, name := range result.SignedBy {
			out.Verifiers[name] = snapshot.Verification{Accepted: true}
		}
		for _, f := range result.Failures {
			out.Verifiers[f.Verifier] = snapshot.Verification{Reason: f.Reason.Error(), Unknown: f.Unknown || unheard(f.Reason)}
		}
		return out
	}
}

// unheard tells whether an error says that a source gave no answer, which proves nothing about an image: it is away, slow, or
// answers with an error of its own (a limit on requests, an expired credential). "Not found" is an answer.
func unheard(err error) bool {
	if image.Unknown(err) {
		return true
	}
	var answer *transport.Error
	if errors.As(err, &answer) && answer.StatusCode != http.StatusNotFound {
		return true
	}
	var network net.Error // *url.Error is one too
	return errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
		errors.Is(err, io.ErrUnexpectedEOF)
}

// platform reads "os/architecture"; nothing leaves it to the checker's configuration.
func platform(text string) image.Platform {
	system, architecture, _ := strings.Cut(text, "/")
	return image.Platform{OS: system, Architecture: architecture}
}
