// Command keelson-policy-sync turns verdicts on nodes into labels, taints, network policies, mesh policies and SPIRE entries.
//
//	keelson-policy-sync --config FILE [--log-level debug|info|warn|error]
//	keelson-policy-sync validate --config FILE
//	keelson-policy-sync manifests | kubectl apply -f -
//	keelson-policy-sync cleanup --config FILE
package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/keelson-project/keelson/policy-sync/syncconfig"
)

func main() {
	if err := command().ExecuteContext(ctrl.SetupSignalHandler()); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "keelson-policy-sync:", err) // nobody is left to tell when this fails
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var path string
	var level slog.Level
	root := &cobra.Command{
		Use:           "keelson-policy-sync",
		Short:         "Turn verdicts on nodes into labels, taints, network and mesh policies and SPIRE entries",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := syncconfig.Load(path)
			if err != nil {
				return err
			}
			return run(cmd.Context(), config, slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
		},
	}
	root.PersistentFlags().StringVar(&path, "config", "/etc/keelson/policy-sync.yaml", "configuration file")
	root.Flags().TextVar(&level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	root.AddCommand(&cobra.Command{
		Use:   "validate",
		Short: "Check the configuration file and list every problem",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := syncconfig.Load(path)
			return err
		},
	})
	root.AddCommand(manifestsCommand(), cleanupCommand(&path))
	return root
}
