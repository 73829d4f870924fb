// Command keelson-node runs on every node and cuts the open connections of revoked addresses, which Calico lets live on when a
// policy closes: it deletes their entries from the kernel's connection tracking table, again and again until Calico's drop is in
// place. It needs the host's network namespace, CAP_NET_ADMIN and the rights of policy-sync/kube.NodeRBAC.
//
//	keelson-node [--node NAME] [--kubeconfig FILE] [--health ADDRESS] [--metrics ADDRESS] [--log-level debug|info|warn|error]
package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	if err := command().Execute(); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "keelson-node:", err) // nobody is left to tell when this fails
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	node, kubeconfig, health, metrics string
	level                             slog.Level
}

func command() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:           "keelson-node",
		Short:         "Cut the open connections of revoked addresses on this node",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return run(ctx, o, slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: o.level})))
		},
	}
	f := c.Flags()
	f.StringVar(&o.node, "node", os.Getenv("NODE_NAME"), "name of this node's Node object; the environment's NODE_NAME unless given")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig; the pod's service account when empty")
	f.StringVar(&o.health, "health", "127.0.0.1:9466", `address that serves /healthz and /readyz; "0" for none`)
	f.StringVar(&o.metrics, "metrics", "0", `address that serves /metrics; "0" for none`)
	f.TextVar(&o.level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	return c
}

// validate reports every problem at once.
func (o options) validate() error {
	var problems []error
	if o.node == "" {
		problems = append(problems, errors.New("--node is missing: give the Node's name, or set NODE_NAME from spec.nodeName"))
	}
	for flag, address := range map[string]string{"--health": o.health, "--metrics": o.metrics} {
		if _, _, err := net.SplitHostPort(address); err != nil && address != off {
			problems = append(problems, fmt.Errorf("%s: %q is neither HOST:PORT nor 0", flag, address))
		}
	}
	return errors.Join(problems...)
}

// off switches an address off.
const off = "0"
