impl super::LogProbKernel for burn::backend::Flex {}
