package syncer

import (
	"context"
	"strings"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/workloadattestor/image"
)

// Checker asks the same verifiers as the workload attestor does about what a container's status says of its image.
func Checker(c *image.Checker) CheckImage {
	return func(ctx context.Context, key snapshot.ImageKey) snapshot.Image {
		result, err := c.Check(ctx, image.Running{Ref: key.ImageID, Name: key.Image, Platform: platform(key.Platform)})
		if err != nil {
			return snapshot.Image{Problem: err.Error()}
		}
		out := snapshot.Image{Verifiers: map[string]snapshot.Verification{}}
		for _, m := range result.Manifests {
			out.Manifests = append(out.Manifests, m.String())
		}
		// An entry that may be what runs and could not be read is a manifest that no policy lists.
		out.Manifests = append(out.Manifests, result.Unread...)
		for _, i := range result.Indexes {
			out.Indexes = append(out.Indexes, i.String())
		}
		for _, name := range result.SignedBy {
			out.Verifiers[name] = snapshot.Verification{Accepted: true}
		}
		for _, f := range result.Failures {
			out.Verifiers[f.Verifier] = snapshot.Verification{Reason: f.Reason.Error()}
		}
		return out
	}
}

// platform reads "os/architecture"; nothing leaves it to the checker's configuration.
func platform(text string) image.Platform {
	system, architecture, _ := strings.Cut(text, "/")
	return image.Platform{OS: system, Architecture: architecture}
}
