// Package spec is what package machine tells the first process of a machine.
package spec

// Spec is what a machine is made of. All paths are absolute.
type Spec struct {
	// Name is the machine's host name.
	Name string
	// Overlays come first, then Binds.
	Overlays []Overlay
	Binds    []Bind
	Sysctls  []Sysctl
	// Ready is a file that is written when the machine stands.
	Ready string
}

// Overlay lets the machine write to a folder of the host's, into folders of its own.
type Overlay struct{ Path, Upper, Work string }

// Bind puts From in the place of To.
type Bind struct{ From, To string }

// Sysctl is a kernel setting, by its path under /proc/sys.
type Sysctl struct{ Path, Value string }
