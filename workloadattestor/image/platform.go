package image

import (
	"slices"
	"strings"
)

// Platform is an operating system, architecture and variant as the OCI image spec (image-index.md) spells them. It says
// which entries of an index a node may run, when an index digest is all that the runtime reports.
type Platform struct{ OS, Architecture, Variant string }

// Platforms as Go and the OCI image spec (image-index.md) spell them. Runtimes take other spellings for the same ("x86_64",
// "Linux": containerd's platforms.Normalize), so an entry with another spelling may be what runs.
var (
	plainSystems       = []string{"linux", "windows", "darwin", "freebsd", "wasip1", "unknown"}
	plainArchitectures = []string{"386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle",
		"ppc64", "ppc64le", "riscv64", "s390x", "wasm", "unknown"}
)

// fallbacks are the architectures that containerd also starts on a node of the first one, when an index has nothing for
// the node's own (containerd/platforms, platformVector).
var fallbacks = map[string]string{"amd64": "386", "arm64": "arm"}

// entryKind says what a node's runtime can do with an entry of an index.
type entryKind int

const (
	never    entryKind = iota // no runtime starts it on this platform
	fallback                  // started only when the index has no exact entry
	possible                  // a runtime may start it: what it is, and which one comes first, is the runtime's choice
	exact                     // the node's own platform, in plain spelling and without variant: it comes before every fallback
)

// kindOf does not choose between entries, because containerd, CRI-O and their versions choose differently. It leaves out only
// what all of them leave out: entries for another system or architecture in a plain spelling. Nothing but the platform
// counts: CRI-O does not look at the media type, and both take an entry without platform when nothing else fits.
func (p Platform) kindOf(d descriptor) entryKind {
	if d.Platform == nil || !plain(d) {
		return possible
	}
	e := d.Platform
	switch {
	case e.OS == "unknown" || e.Architecture == "unknown":
		return never // a build attestation
	case p.OS == "" || p.Architecture == "":
		return possible // of any node
	case e.Architecture == "wasm" || e.OS == "wasip1":
		return possible // a runtime class may run WebAssembly beside the node's own platform
	case e.OS != p.OS:
		return never
	case e.Architecture == p.Architecture && e.unqualified() && d.MediaType.IsImage():
		return exact
	case e.Architecture == p.Architecture:
		return possible
	case fallbacks[p.Architecture] == e.Architecture:
		return fallback
	default:
		return never
	}
}

// candidates are the entries of an index that this platform's runtimes may start, plainest fits first.
func (p Platform) candidates(children []descriptor) []descriptor {
	var fits, may, last []descriptor
	for _, child := range children {
		switch p.kindOf(child) {
		case exact:
			fits = append(fits, child)
		case possible:
			may = append(may, child)
		case fallback:
			last = append(last, child)
		case never:
		}
	}
	if len(fits) > 0 {
		last = nil
	}
	return slices.Concat(fits, may, last)
}

// plain tells whether an entry's platform is spelled as the OCI image spec spells it.
func plain(d descriptor) bool {
	return d.Platform == nil || slices.Contains(plainSystems, d.Platform.OS) && slices.Contains(plainArchitectures, d.Platform.Architecture)
}

// unqualified tells whether an entry is for every machine of its architecture.
func (e *entryPlatform) unqualified() bool {
	none := e.Variant == "" || e.Architecture == "arm64" && e.Variant == "v8"
	return none && e.OSVersion == "" && len(e.OSFeatures) == 0 && len(e.Features) == 0
}

// String is "os/architecture[/variant]".
func (p Platform) String() string {
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}
