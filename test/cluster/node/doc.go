// Package node runs what stands below a kubelet on a machine: a container runtime that is spoken to over CRI, pods that are
// started with the labels that a kubelet sets, images from a local registry, and a network that joins the pods of several
// nodes on one machine.
//
// The runtime is a real containerd of its own for each node when the process is root:
//
//	net, err := node.NewNetwork()                                  // one for all nodes of a run
//	reg, err := node.NewRegistry()                                 // images are pushed there, runtimes pull from it
//	img, err := reg.Push("keelson/payments", node.Image{Files: …, Entrypoint: …})
//	rt, err := node.StartContainerd(ctx, group, node.ContainerdOptions{Name: "fra-1", Dir: dir, Network: net, …})
//	pod, err := rt.Run(ctx, node.PodSpec{Namespace: "payments", Name: "api", UID: uid, Image: img.Reference(), …})
//	result, err := rt.Exec(ctx, pod.ContainerID, "/workload", "svid")
//	err = errors.Join(rt.Close(ctx), net.Close())
//
// Dial makes the same client for any other CRI socket.
package node
