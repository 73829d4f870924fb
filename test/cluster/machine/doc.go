// Package machine makes machines out of Linux namespaces: each has processes, mounts, a network, a host name and files of its
// own, so that kubelets, container runtimes and network plugins run several times on one computer with their usual paths.
//
//	net, err := machine.NewNetwork()                          // a bridge; the computer has its first address
//	m, err := machine.Start(ctx, group, machine.Options{Name: "fra-1", Number: 1, Dir: dir, Network: net, …})
//	p, err := m.Start(cluster.Command{Name: "kubelet-fra-1", Path: kubelet, Args: …})
//	file := m.Path("/run/containerd/containerd.sock")         // the machine's file, as seen from here
//	err = errors.Join(m.Close(), net.Close())
//
// What a machine writes under /etc, /opt, /var and /run is its own; all else is the computer's. It needs root.
//
// However the program that made it ends, the kernel ends the machine: its first process dies with its parent, everything in
// its PID namespace dies with that, and mounts and interfaces go with the last process. What the kernel does not take away,
// the bridge and the cgroups, Network.Close and Machine.Close do; Remains names them for whoever cleans up after a crash.
package machine
